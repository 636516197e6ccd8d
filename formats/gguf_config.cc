// The architecture in a GGUF file's metadata, as llama.cpp's converter writes it.
#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "formats/gguf_model.h"
#include "formats/rope_json.h"

namespace stillhouse {
namespace {

using Kind = RopeScaling::Kind;

// The converter writes Llama 3's scaling as divisors of the frequencies and drops what they were
// made from. Every Llama 3 has these numbers.
constexpr RopeScaling kLlama3{
    .kind = Kind::kLlama3, .original_positions = 8192, .low_freq_factor = 1, .high_freq_factor = 4};
constexpr float kDivisorErrorMax = 1e-4f;  // relative; the converter computes in float or double

absl::Status MissingKey(absl::string_view key) {
  return absl::InvalidArgumentError(absl::StrCat("metadata key \"", key, "\" is missing"));
}

// Metadata under the architecture's prefix.
class Keys {
 public:
  // `file` must outlive *this.
  Keys(const GgufFile& file, std::string architecture)
      : file_(file), architecture_(std::move(architecture)) {}

  std::string Name(absl::string_view key) const { return absl::StrCat(architecture_, ".", key); }
  bool Has(absl::string_view key) const { return file_.Has(Name(key)); }
  absl::StatusOr<std::optional<int64_t>> Int(absl::string_view key) const {
    return file_.Int(Name(key));
  }
  absl::StatusOr<int64_t> RequiredInt(absl::string_view key) const {
    SH_ASSIGN_OR_RETURN(const std::optional<int64_t> value, Int(key));
    if (!value.has_value()) return MissingKey(Name(key));
    return *value;
  }
  absl::StatusOr<std::optional<double>> Number(absl::string_view key) const {
    return file_.Number(Name(key));
  }
  absl::StatusOr<std::optional<bool>> Bool(absl::string_view key) const {
    return file_.Bool(Name(key));
  }
  absl::StatusOr<std::optional<absl::string_view>> String(absl::string_view key) const {
    return file_.String(Name(key));
  }

 private:
  const GgufFile& file_;
  const std::string architecture_;
};

// A model of several widths per layer has arrays where others have one number; those are refused by
// their type. What else our decoder would compute differently is refused here.
absl::Status RefuseVariants(const Keys& keys, const ModelConfig& config) {
  for (const absl::string_view key : {"rope.dimension_count", "attention.value_length"}) {
    SH_ASSIGN_OR_RETURN(const std::optional<int64_t> size, keys.Int(key));
    if (size.value_or(config.head_dim) == config.head_dim) continue;
    return absl::UnimplementedError(absl::StrCat(keys.Name(key), " ", *size, " of head_dim ",
                                                 config.head_dim, " is not implemented"));
  }
  for (const absl::string_view key :
       {"expert_count", "attention.sliding_window", "attention.sliding_window_pattern",
        "attention.scale", "attention.clamp_kqv", "attention.logit_softcapping",
        "attention.temperature_scale", "final_logit_softcapping", "logit_scale", "embedding_scale",
        "residual_scale", "rope.dimension_sections"}) {
    if (!keys.Has(key)) continue;
    // An integer of 0 is how "no experts" and "no window" are written.
    const absl::StatusOr<std::optional<int64_t>> number = keys.Int(key);
    if (number.ok() && number->value_or(1) == 0) continue;
    return absl::UnimplementedError(absl::StrCat(keys.Name(key), " is not implemented"));
  }
  SH_ASSIGN_OR_RETURN(const std::optional<bool> causal, keys.Bool("attention.causal"));
  if (causal.value_or(true)) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat(keys.Name("attention.causal"), " false is not implemented"));
}

// llama.cpp scales attention by 1 + ln(factor)/10, times attn_factor.
absl::Status ReadYarn(const Keys& keys, ModelConfig& config) {
  for (const absl::string_view key :
       {"rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"}) {
    SH_ASSIGN_OR_RETURN(const std::optional<double> factor, keys.Number(key));
    if (factor.value_or(1) == 1) continue;
    return absl::UnimplementedError(
        absl::StrCat(keys.Name(key), " ", *factor, " is not implemented"));
  }
  for (const absl::string_view key :
       {"rope.scaling.yarn_log_multiplier", "rope.scaling.yarn_ext_factor"}) {
    if (keys.Has(key)) {
      return absl::UnimplementedError(absl::StrCat(keys.Name(key), " is not implemented"));
    }
  }
  SH_ASSIGN_OR_RETURN(const std::optional<int64_t> original,
                      keys.Int("rope.scaling.original_context_length"));
  config.rope.original_positions = original.value_or(config.max_positions);
  config.rope.attention_factor = YarnMagnitude(config.rope.factor, 1);
  SH_ASSIGN_OR_RETURN(const std::optional<double> fast, keys.Number("rope.scaling.yarn_beta_fast"));
  SH_ASSIGN_OR_RETURN(const std::optional<double> slow, keys.Number("rope.scaling.yarn_beta_slow"));
  config.rope.beta_fast = fast.value_or(config.rope.beta_fast);
  config.rope.beta_slow = slow.value_or(config.rope.beta_slow);
  return absl::OkStatus();
}

// Is every divisor the one that `rope` means for its frequency?
bool AreDivisorsOf(const RopeScaling& rope, const ModelConfig& config,
                   absl::Span<const float> divisors) {
  const std::vector<float> wanted = RopeDivisors(rope, config);
  for (size_t i = 0; i < divisors.size(); ++i) {
    if (!(std::abs(divisors[i] / wanted[i] - 1) <= kDivisorErrorMax)) return false;
  }
  return true;
}

absl::Status ReadDivisors(const GgufTensor& tensor, ModelConfig& config) {
  if (tensor.shape != std::vector<int64_t>{config.head_dim / 2} || tensor.type->name != "F32") {
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor \"", kRopeDivisors, "\" has the type ", tensor.type->name, " and the shape ",
        ShapeText(tensor.shape), ", not F32 and [", config.head_dim / 2, "]"));
  }
  std::vector<float> divisors(static_cast<size_t>(config.head_dim) / 2);
  GgmlDecode(*tensor.type, tensor.bytes, absl::MakeSpan(divisors));
  RopeScaling rope = kLlama3;
  rope.factor = *std::max_element(divisors.begin(), divisors.end());
  if (config.rope.kind != Kind::kDefault || !(rope.factor > 1) ||
      !AreDivisorsOf(rope, config, divisors)) {
    return absl::UnimplementedError(absl::StrCat(
        "tensor \"", kRopeDivisors, "\" holds other factors than those of Llama 3 (",
        "low_freq_factor 1, high_freq_factor 4, original length 8192): not implemented"));
  }
  config.rope = rope;
  return absl::OkStatus();
}

absl::Status ReadRotation(const GgufFile& file, const Keys& keys, ModelConfig& config) {
  SH_ASSIGN_OR_RETURN(const std::optional<double> theta, keys.Number("rope.freq_base"));
  config.rope_theta = theta.value_or(10000.0);  // llama.cpp's default
  SH_ASSIGN_OR_RETURN(const std::optional<absl::string_view> type,
                      keys.String("rope.scaling.type"));
  SH_ASSIGN_OR_RETURN(std::optional<double> factor, keys.Number("rope.scaling.factor"));
  SH_ASSIGN_OR_RETURN(const std::optional<double> linear, keys.Number("rope.scale_linear"));
  if (!factor.has_value()) factor = linear;  // as it was called first
  // As llama.cpp: without a type a factor is linear, and one of 0 or 1 is none.
  const absl::string_view kind = type.value_or("linear");
  const bool scales = factor.value_or(0) != 0 && factor.value_or(1) != 1;
  if (kind == "yarn") {
    if (!factor.has_value()) return MissingKey(keys.Name("rope.scaling.factor"));
    config.rope.kind = Kind::kYarn;
    config.rope.factor = *factor;
    SH_RETURN_IF_ERROR(ReadYarn(keys, config));
  } else if (kind == "linear" && scales) {
    config.rope.kind = Kind::kLinear;
    config.rope.factor = *factor;
  } else if (kind != "linear" && kind != "none") {
    return absl::UnimplementedError(absl::StrCat("RoPE scaling \"", kind, "\" is not implemented"));
  }
  const GgufTensor* divisors = file.FindTensor(kRopeDivisors);
  return divisors == nullptr ? absl::OkStatus() : ReadDivisors(*divisors, config);
}

absl::Status ReadSizes(const Keys& keys, ModelConfig& config) {
  SH_ASSIGN_OR_RETURN(config.hidden_size, keys.RequiredInt("embedding_length"));
  SH_ASSIGN_OR_RETURN(config.intermediate_size, keys.RequiredInt("feed_forward_length"));
  SH_ASSIGN_OR_RETURN(config.layers, keys.RequiredInt("block_count"));
  SH_ASSIGN_OR_RETURN(config.heads, keys.RequiredInt("attention.head_count"));
  SH_ASSIGN_OR_RETURN(const std::optional<int64_t> kv_heads, keys.Int("attention.head_count_kv"));
  config.kv_heads = kv_heads.value_or(config.heads);
  SH_ASSIGN_OR_RETURN(const std::optional<int64_t> head_dim, keys.Int("attention.key_length"));
  if (!head_dim.has_value() && (config.heads <= 0 || config.hidden_size % config.heads != 0)) {
    return absl::InvalidArgumentError(absl::StrCat(
        keys.Name("embedding_length"), " (", config.hidden_size, ") is not a multiple of ",
        keys.Name("attention.head_count"), " (", config.heads, ")"));
  }
  config.head_dim = head_dim.has_value() ? *head_dim : config.hidden_size / config.heads;
  SH_ASSIGN_OR_RETURN(config.max_positions, keys.RequiredInt("context_length"));
  SH_ASSIGN_OR_RETURN(const std::optional<double> eps,
                      keys.Number("attention.layer_norm_rms_epsilon"));
  if (!eps.has_value()) return MissingKey(keys.Name("attention.layer_norm_rms_epsilon"));
  config.rms_norm_eps = *eps;
  return absl::OkStatus();
}

// Which optional tensors there are, by those of the first layer.
void FindVariants(const GgufFile& file, ModelConfig& config) {
  const auto has = [&](absl::string_view tensor) {
    return file.FindTensor(absl::StrCat("blk.0.", tensor)) != nullptr;
  };
  config.qkv_bias = has("attn_q.bias") || config.architecture == "qwen2";
  config.output_bias = has("attn_output.bias");
  config.mlp_bias = has("ffn_gate.bias");
  config.qk_norm = config.architecture == "qwen3";
  config.tie_embeddings = file.FindTensor("output.weight") == nullptr;
}

absl::Status ReadTokenIds(const GgufFile& file, ModelConfig& config) {
  SH_ASSIGN_OR_RETURN(config.bos_id, file.Int("tokenizer.ggml.bos_token_id"));
  SH_ASSIGN_OR_RETURN(config.eos_id, file.Int("tokenizer.ggml.eos_token_id"));
  SH_ASSIGN_OR_RETURN(config.pad_id, file.Int("tokenizer.ggml.padding_token_id"));
  if (!config.eos_id.has_value()) return absl::OkStatus();
  for (const absl::string_view key : {"eot", "eom"}) {  // ends of a turn and of a message
    SH_ASSIGN_OR_RETURN(const std::optional<int64_t> id,
                        file.Int(absl::StrCat("tokenizer.ggml.", key, "_token_id")));
    if (id.has_value() && id != config.eos_id) config.more_eos_ids.push_back(*id);
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<float> RopeDivisors(const RopeScaling& rope, const ModelConfig& config) {
  const auto original = static_cast<double>(rope.original_positions);
  std::vector<float> divisors;
  for (int64_t i = 0; i < config.head_dim / 2; ++i) {
    const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(config.head_dim);
    const double turns = original / (2 * std::numbers::pi * std::pow(config.rope_theta, exponent));
    const double smooth = std::clamp(
        (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0, 1.0);
    divisors.push_back(static_cast<float>(1 / ((1 - smooth) / rope.factor + smooth)));
  }
  return divisors;
}

absl::StatusOr<ModelConfig> GgufModelConfig(const GgufFile& file) {
  SH_ASSIGN_OR_RETURN(const std::optional<absl::string_view> architecture,
                      file.String("general.architecture"));
  if (!architecture.has_value()) return MissingKey("general.architecture");
  if (*architecture != "llama" && *architecture != "qwen2" && *architecture != "qwen3") {
    return absl::UnimplementedError(absl::StrCat("architecture \"", architecture->substr(0, 80),
                                                 "\" is not implemented, only \"llama\" (as which "
                                                 "llama.cpp writes Mistral too), \"qwen2\" and "
                                                 "\"qwen3\""));
  }
  const Keys keys(file, std::string(*architecture));
  ModelConfig config;
  config.architecture = std::string(*architecture);
  const GgufTensor* embedding = file.FindTensor("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2) {
    return absl::InvalidArgumentError("tensor \"token_embd.weight\" is missing or no matrix");
  }
  config.vocab_size = embedding->shape[0];
  config.dtype = "bfloat16";
  SH_RETURN_IF_ERROR(ReadSizes(keys, config));
  FindVariants(file, config);
  SH_RETURN_IF_ERROR(ReadTokenIds(file, config));
  SH_RETURN_IF_ERROR(config.Validate());
  SH_RETURN_IF_ERROR(ReadRotation(file, keys, config));
  SH_RETURN_IF_ERROR(config.Validate());
  SH_RETURN_IF_ERROR(RefuseVariants(keys, config));
  return config;
}

}  // namespace stillhouse

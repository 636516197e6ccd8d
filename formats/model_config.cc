#include "formats/model_config.h"

#include <array>
#include <cmath>
#include <utility>

#include "common/status.h"
#include "formats/json.h"

namespace stillhouse {
namespace {

// Ten times and more what exists: past them a size is a mistake or an attack, and products of any
// three still fit int64.
constexpr int64_t kVocabularyMax = 1 << 22;
constexpr int64_t kWidthMax = 1 << 19;  // hidden and intermediate
constexpr int64_t kLayersMax = 1 << 11;
constexpr int64_t kHeadsMax = 1 << 13;
constexpr int64_t kHeadDimMax = 1 << 13;
constexpr int64_t kPositionsMax = 1 << 30;

absl::Status CheckRange(absl::string_view field, int64_t value, int64_t max) {
  if (value >= 1 && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", value, "; it must be from 1 to ", max));
}

absl::Status CheckTokenId(absl::string_view field, const std::optional<int64_t>& id,
                          int64_t vocab_size) {
  if (!id.has_value() || (*id >= 0 && *id < vocab_size)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", *id, ", outside the vocabulary of ", vocab_size));
}

// A token id: a number, a list whose first counts, or nothing. Llama 1 wrote -1 for "none".
absl::StatusOr<std::optional<int64_t>> TokenId(const JsonFields& fields, absl::string_view key,
                                               absl::string_view path) {
  const Json* value = fields.Find(key);
  if (value == nullptr) return std::optional<int64_t>();
  if (value->is_array()) {
    if (value->empty()) return std::optional<int64_t>();
    if (!value->front().is_number_integer()) return fields.WrongType(key, "an integer or a list");
    return std::optional<int64_t>(value->front().get<int64_t>());
  }
  SH_ASSIGN_OR_RETURN(std::optional<int64_t> id, fields.Int(key));
  if (id.has_value() && *id < 0) id.reset();
  return id;
}

// RoPE in both dialects: `rope_theta` + `rope_scaling` {type | rope_type}, or `rope_parameters`.
absl::Status ReadRope(const JsonFields& fields, absl::string_view path, ModelConfig& config) {
  SH_ASSIGN_OR_RETURN(std::optional<double> theta, fields.Number("rope_theta"));
  for (const absl::string_view key : {"rope_scaling", "rope_parameters"}) {
    const Json* rope = fields.Find(key);
    if (rope == nullptr) continue;
    if (!rope->is_object()) return fields.WrongType(key, "an object");
    const JsonFields inner(*rope, path);
    SH_ASSIGN_OR_RETURN(std::optional<std::string> kind, inner.String("rope_type"));
    if (!kind.has_value()) {
      SH_ASSIGN_OR_RETURN(kind, inner.String("type"));
    }
    if (kind.value_or("default") != "default") {
      return absl::UnimplementedError(absl::StrCat(path, ": RoPE kind \"", *kind, "\" (`", key,
                                                   "`) is not implemented, only \"default\""));
    }
    SH_ASSIGN_OR_RETURN(const std::optional<double> partial, inner.Number("partial_rotary_factor"));
    if (partial.value_or(1.0) != 1.0) {
      return absl::UnimplementedError(
          absl::StrCat(path, ": partial_rotary_factor ", *partial, " is not implemented"));
    }
    SH_ASSIGN_OR_RETURN(const std::optional<double> inner_theta, inner.Number("rope_theta"));
    if (theta.has_value() && inner_theta.has_value() && *theta != *inner_theta) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": rope_theta is ", *theta, " and in `", key, "` ", *inner_theta));
    }
    if (inner_theta.has_value()) theta = inner_theta;
  }
  config.rope_theta = theta.value_or(10000.0);
  return absl::OkStatus();
}

// What a Llama checkpoint may say that our decoder would compute differently.
absl::Status RefuseVariants(const JsonFields& fields, absl::string_view path) {
  SH_ASSIGN_OR_RETURN(const std::optional<std::string> type, fields.String("model_type"));
  if (!type.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": `model_type` is missing"));
  }
  if (*type != "llama") {
    return absl::UnimplementedError(
        absl::StrCat(path, ": architecture \"", *type, "\" is not implemented, only \"llama\""));
  }
  SH_ASSIGN_OR_RETURN(const std::optional<std::string> activation, fields.String("hidden_act"));
  if (activation.value_or("silu") != "silu") {
    return absl::UnimplementedError(
        absl::StrCat(path, ": hidden_act \"", *activation, "\" is not implemented, only \"silu\""));
  }
  for (const absl::string_view key : {"attention_bias", "mlp_bias"}) {
    SH_ASSIGN_OR_RETURN(const std::optional<bool> bias, fields.Bool(key));
    if (bias.value_or(false)) {
      return absl::UnimplementedError(absl::StrCat(path, ": `", key, "` is not implemented"));
    }
  }
  if (fields.Find("quantization_config") != nullptr) {
    return absl::UnimplementedError(absl::StrCat(
        path, ": quantised checkpoints (`quantization_config`) are not implemented; use GGUF"));
  }
  return absl::OkStatus();
}

absl::Status ReadDtype(const JsonFields& fields, absl::string_view path, ModelConfig& config) {
  SH_ASSIGN_OR_RETURN(std::optional<std::string> dtype, fields.String("dtype"));
  if (!dtype.has_value()) {
    SH_ASSIGN_OR_RETURN(dtype, fields.String("torch_dtype"));
  }
  if (!dtype.has_value()) return absl::OkStatus();
  for (const absl::string_view known : {"float32", "bfloat16", "float16"}) {
    if (*dtype == known) {
      config.dtype = *dtype;
      return absl::OkStatus();
    }
  }
  return absl::UnimplementedError(absl::StrCat(
      path, ": dtype \"", *dtype, "\" is not implemented, only float32, bfloat16 and float16"));
}

}  // namespace

absl::Status ModelConfig::Validate() const {
  if (architecture != "llama") {
    return absl::UnimplementedError(
        absl::StrCat("architecture \"", architecture, "\" is not implemented, only \"llama\""));
  }
  SH_RETURN_IF_ERROR(CheckRange("vocab_size", vocab_size, kVocabularyMax));
  SH_RETURN_IF_ERROR(CheckRange("hidden_size", hidden_size, kWidthMax));
  SH_RETURN_IF_ERROR(CheckRange("intermediate_size", intermediate_size, kWidthMax));
  SH_RETURN_IF_ERROR(CheckRange("num_hidden_layers", layers, kLayersMax));
  SH_RETURN_IF_ERROR(CheckRange("num_attention_heads", heads, kHeadsMax));
  SH_RETURN_IF_ERROR(CheckRange("num_key_value_heads", kv_heads, kHeadsMax));
  SH_RETURN_IF_ERROR(CheckRange("head_dim", head_dim, kHeadDimMax));
  SH_RETURN_IF_ERROR(CheckRange("max_position_embeddings", max_positions, kPositionsMax));
  if (heads % kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat("num_attention_heads (", heads,
                                                   ") must be a multiple of num_key_value_heads (",
                                                   kv_heads, ")"));
  }
  if (head_dim % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("head_dim is ", head_dim, "; rotary embeddings need an even number"));
  }
  if (!std::isfinite(rope_theta) || rope_theta <= 0) {
    return absl::InvalidArgumentError(absl::StrCat("rope_theta is ", rope_theta));
  }
  if (!std::isfinite(rms_norm_eps) || rms_norm_eps <= 0 || rms_norm_eps >= 1) {
    return absl::InvalidArgumentError(absl::StrCat("rms_norm_eps is ", rms_norm_eps));
  }
  SH_RETURN_IF_ERROR(CheckTokenId("bos_token_id", bos_id, vocab_size));
  SH_RETURN_IF_ERROR(CheckTokenId("eos_token_id", eos_id, vocab_size));
  return CheckTokenId("pad_token_id", pad_id, vocab_size);
}

std::vector<ModelConfig::Parameter> ModelConfig::Parameters() const {
  std::vector<Parameter> all;
  all.reserve(static_cast<size_t>(layers) * 9 + 3);
  all.push_back({"model.embed_tokens.weight", {vocab_size, hidden_size}});
  const int64_t q = heads * head_dim;
  const int64_t kv = kv_heads * head_dim;
  for (int64_t i = 0; i < layers; ++i) {
    const std::string layer = absl::StrCat("model.layers.", i, ".");
    all.push_back({layer + "self_attn.q_proj.weight", {q, hidden_size}});
    all.push_back({layer + "self_attn.k_proj.weight", {kv, hidden_size}});
    all.push_back({layer + "self_attn.v_proj.weight", {kv, hidden_size}});
    all.push_back({layer + "self_attn.o_proj.weight", {hidden_size, q}});
    all.push_back({layer + "mlp.gate_proj.weight", {intermediate_size, hidden_size}});
    all.push_back({layer + "mlp.up_proj.weight", {intermediate_size, hidden_size}});
    all.push_back({layer + "mlp.down_proj.weight", {hidden_size, intermediate_size}});
    all.push_back({layer + "input_layernorm.weight", {hidden_size}});
    all.push_back({layer + "post_attention_layernorm.weight", {hidden_size}});
  }
  all.push_back({"model.norm.weight", {hidden_size}});
  if (!tie_embeddings) all.push_back({"lm_head.weight", {vocab_size, hidden_size}});
  return all;
}

int64_t ModelConfig::ParameterCount() const {
  const int64_t q = heads * head_dim;
  const int64_t kv = kv_heads * head_dim;
  const int64_t layer =
      hidden_size * (2 * q + 2 * kv) + 3 * hidden_size * intermediate_size + 2 * hidden_size;
  return vocab_size * hidden_size * (tie_embeddings ? 1 : 2) + layers * layer + hidden_size;
}

absl::StatusOr<ModelConfig> ParseConfigJson(absl::string_view json, absl::string_view path) {
  SH_ASSIGN_OR_RETURN(const Json root, ParseJson(json, path));
  if (!root.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a JSON object"));
  }
  const JsonFields fields(root, path);
  SH_RETURN_IF_ERROR(RefuseVariants(fields, path));

  ModelConfig config;
  const std::array<std::pair<absl::string_view, int64_t*>, 5> required = {{
      {"vocab_size", &config.vocab_size},
      {"hidden_size", &config.hidden_size},
      {"intermediate_size", &config.intermediate_size},
      {"num_hidden_layers", &config.layers},
      {"num_attention_heads", &config.heads},
  }};
  for (const auto& [key, target] : required) {
    SH_ASSIGN_OR_RETURN(const std::optional<int64_t> value, fields.Int(key));
    if (!value.has_value()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": `", key, "` is missing"));
    }
    *target = *value;
  }
  SH_ASSIGN_OR_RETURN(const std::optional<int64_t> kv_heads, fields.Int("num_key_value_heads"));
  config.kv_heads = kv_heads.value_or(config.heads);
  SH_ASSIGN_OR_RETURN(const std::optional<int64_t> head_dim, fields.Int("head_dim"));
  if (!head_dim.has_value() && (config.heads <= 0 || config.hidden_size % config.heads != 0)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": hidden_size (", config.hidden_size,
                                                   ") is not a multiple of num_attention_heads (",
                                                   config.heads, ") and `head_dim` is missing"));
  }
  config.head_dim = head_dim.has_value() ? *head_dim : config.hidden_size / config.heads;
  // Defaults below are those of transformers' LlamaConfig.
  SH_ASSIGN_OR_RETURN(const std::optional<int64_t> positions,
                      fields.Int("max_position_embeddings"));
  config.max_positions = positions.value_or(2048);
  SH_ASSIGN_OR_RETURN(const std::optional<double> eps, fields.Number("rms_norm_eps"));
  config.rms_norm_eps = eps.value_or(1e-6);
  SH_ASSIGN_OR_RETURN(const std::optional<bool> tied, fields.Bool("tie_word_embeddings"));
  config.tie_embeddings = tied.value_or(false);
  SH_RETURN_IF_ERROR(ReadRope(fields, path, config));
  SH_RETURN_IF_ERROR(ReadDtype(fields, path, config));
  SH_ASSIGN_OR_RETURN(config.bos_id, TokenId(fields, "bos_token_id", path));
  SH_ASSIGN_OR_RETURN(config.eos_id, TokenId(fields, "eos_token_id", path));
  SH_ASSIGN_OR_RETURN(config.pad_id, TokenId(fields, "pad_token_id", path));
  SH_RETURN_IF_ERROR_AT(config.Validate(), path);
  return config;
}

std::string ConfigToJson(const ModelConfig& config) {
  const auto id = [](const std::optional<int64_t>& value) {
    return value.has_value() ? Json(*value) : Json(nullptr);
  };
  // Both dialects at once: transformers 4 reads rope_theta and torch_dtype, 5 rope_parameters and
  // dtype; each passes over the other's keys.
  const Json root = {
      {"architectures", Json::array({"LlamaForCausalLM"})},
      {"attention_bias", false},
      {"attention_dropout", 0.0},
      {"bos_token_id", id(config.bos_id)},
      {"dtype", config.dtype},
      {"eos_token_id", id(config.eos_id)},
      {"head_dim", config.head_dim},
      {"hidden_act", "silu"},
      {"hidden_size", config.hidden_size},
      {"initializer_range", 0.02},
      {"intermediate_size", config.intermediate_size},
      {"max_position_embeddings", config.max_positions},
      {"mlp_bias", false},
      {"model_type", config.architecture},
      {"num_attention_heads", config.heads},
      {"num_hidden_layers", config.layers},
      {"num_key_value_heads", config.kv_heads},
      {"pad_token_id", id(config.pad_id)},
      {"pretraining_tp", 1},
      {"rms_norm_eps", config.rms_norm_eps},
      {"rope_parameters", {{"rope_theta", config.rope_theta}, {"rope_type", "default"}}},
      {"rope_theta", config.rope_theta},
      {"tie_word_embeddings", config.tie_embeddings},
      {"torch_dtype", config.dtype},
      {"use_cache", true},
      {"vocab_size", config.vocab_size},
  };
  return root.dump(2) + "\n";
}

}  // namespace stillhouse

#include "formats/gguf_model.h"

#include <array>
#include <cmath>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/strip.h"
#include "common/status.h"

namespace stillhouse {
namespace {

absl::Status MissingKey(absl::string_view key) {
  return absl::InvalidArgumentError(absl::StrCat("metadata key \"", key, "\" is missing"));
}

absl::StatusOr<int64_t> RequiredInt(const GgufFile& file, absl::string_view key) {
  SH_ASSIGN_OR_RETURN(const std::optional<int64_t> value, file.Int(key));
  if (!value.has_value()) return MissingKey(key);
  return *value;
}

// A model of several widths per layer has arrays where others have one number; those are refused by
// their type. What else our decoder would compute differently is refused here.
absl::Status RefuseVariants(const GgufFile& file, const ModelConfig& config) {
  SH_ASSIGN_OR_RETURN(const std::optional<absl::string_view> scaling,
                      file.String("llama.rope.scaling.type"));
  if (scaling.value_or("none") != "none") {
    return absl::UnimplementedError(
        absl::StrCat("RoPE scaling \"", *scaling, "\" is not implemented"));
  }
  SH_ASSIGN_OR_RETURN(const std::optional<int64_t> rotary, file.Int("llama.rope.dimension_count"));
  if (rotary.value_or(config.head_dim) != config.head_dim) {
    return absl::UnimplementedError(absl::StrCat("llama.rope.dimension_count ", *rotary,
                                                 " of head_dim ", config.head_dim,
                                                 ": partial rotation is not implemented"));
  }
  SH_ASSIGN_OR_RETURN(const std::optional<int64_t> value_length,
                      file.Int("llama.attention.value_length"));
  if (value_length.value_or(config.head_dim) != config.head_dim) {
    return absl::UnimplementedError("llama.attention.value_length differs from key_length");
  }
  SH_ASSIGN_OR_RETURN(const std::optional<int64_t> experts, file.Int("llama.expert_count"));
  if (experts.value_or(0) != 0) {
    return absl::UnimplementedError("mixtures of experts (llama.expert_count) are not implemented");
  }
  return absl::OkStatus();
}

// "model.layers.3.mlp.up_proj.weight" -> "blk.3.ffn_up.weight"
std::string GgufName(absl::string_view name) {
  static constexpr std::array<std::pair<absl::string_view, absl::string_view>, 9> kLayer = {{
      {"self_attn.q_proj.weight", "attn_q.weight"},
      {"self_attn.k_proj.weight", "attn_k.weight"},
      {"self_attn.v_proj.weight", "attn_v.weight"},
      {"self_attn.o_proj.weight", "attn_output.weight"},
      {"mlp.gate_proj.weight", "ffn_gate.weight"},
      {"mlp.up_proj.weight", "ffn_up.weight"},
      {"mlp.down_proj.weight", "ffn_down.weight"},
      {"input_layernorm.weight", "attn_norm.weight"},
      {"post_attention_layernorm.weight", "ffn_norm.weight"},
  }};
  if (name == "model.embed_tokens.weight") return "token_embd.weight";
  if (name == "model.norm.weight") return "output_norm.weight";
  if (name == "lm_head.weight") return "output.weight";
  SH_CHECK(absl::ConsumePrefix(&name, "model.layers."), name);
  const size_t dot = name.find('.');
  for (const auto& [ours, theirs] : kLayer) {
    if (name.substr(dot + 1) == ours) {
      return absl::StrCat("blk.", name.substr(0, dot), ".", theirs);
    }
  }
  SH_CHECK(false, "no GGUF name for a parameter: ", name);
  return "";
}

// llama.cpp rotates neighbouring pairs of a head where Hugging Face rotates its two halves, so it
// stores row (2i + j) of each head's q and k where Hugging Face has row (j * head_dim / 2 + i).
class GgufWeights final : public Weights {
 public:
  explicit GgufWeights(std::shared_ptr<const GgufFile> file) : file_(std::move(file)) {}

  void Add(TensorInfo info, const GgufTensor& tensor, int64_t rotated_head_dim) {
    index_[info.name] = infos_.size();
    infos_.push_back(std::move(info));
    stored_.push_back({&tensor, rotated_head_dim});
  }

  const std::vector<TensorInfo>& tensors() const override { return infos_; }

  const TensorInfo* Find(absl::string_view name) const override {
    const auto found = index_.find(name);
    return found == index_.end() ? nullptr : &infos_[found->second];
  }

  absl::Status ReadF32(absl::string_view name, absl::Span<float> out) const override {
    const auto found = index_.find(name);
    if (found == index_.end()) return NotThere(name);
    const auto& [tensor, head_dim] = stored_[found->second];
    SH_CHECK(static_cast<int64_t>(out.size()) == infos_[found->second].Count());
    if (head_dim == 0) {
      GgmlDecode(*tensor->type, tensor->bytes, out);
      return absl::OkStatus();
    }
    const size_t rows = tensor->shape[0];
    const size_t columns = tensor->shape[1];
    const size_t row_bytes = tensor->bytes.size() / rows;
    const size_t half = static_cast<size_t>(head_dim) / 2;
    for (size_t row = 0; row < rows; ++row) {
      const size_t within = row % head_dim;
      const size_t source = row - within + 2 * (within % half) + within / half;
      GgmlDecode(*tensor->type, tensor->bytes.substr(source * row_bytes, row_bytes),
                 out.subspan(row * columns, columns));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<absl::string_view> RawBytes(absl::string_view name) const override {
    const auto found = index_.find(name);
    if (found == index_.end()) return NotThere(name);
    return stored_[found->second].tensor->bytes;
  }

  std::vector<FileIdentity> files() const override { return {file_->identity()}; }

 private:
  struct Stored {
    const GgufTensor* tensor;
    int64_t head_dim;  // 0: the rows lie as they should
  };

  absl::Status NotThere(absl::string_view name) const {
    return absl::NotFoundError(absl::StrCat(file_->path(), ": no tensor \"", name, "\""));
  }

  std::shared_ptr<const GgufFile> file_;
  std::vector<TensorInfo> infos_;
  std::vector<Stored> stored_;
  absl::flat_hash_map<std::string, size_t> index_;
};

}  // namespace

absl::StatusOr<ModelConfig> GgufModelConfig(const GgufFile& file) {
  SH_ASSIGN_OR_RETURN(const std::optional<absl::string_view> architecture,
                      file.String("general.architecture"));
  if (!architecture.has_value()) return MissingKey("general.architecture");
  if (*architecture != "llama") {
    return absl::UnimplementedError(
        absl::StrCat("architecture \"", *architecture, "\" is not implemented, only \"llama\""));
  }
  ModelConfig config;
  const GgufTensor* embedding = file.FindTensor("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2) {
    return absl::InvalidArgumentError("tensor \"token_embd.weight\" is missing or no matrix");
  }
  config.vocab_size = embedding->shape[0];
  config.tie_embeddings = file.FindTensor("output.weight") == nullptr;
  config.dtype = "bfloat16";
  SH_ASSIGN_OR_RETURN(config.hidden_size, RequiredInt(file, "llama.embedding_length"));
  SH_ASSIGN_OR_RETURN(config.intermediate_size, RequiredInt(file, "llama.feed_forward_length"));
  SH_ASSIGN_OR_RETURN(config.layers, RequiredInt(file, "llama.block_count"));
  SH_ASSIGN_OR_RETURN(config.heads, RequiredInt(file, "llama.attention.head_count"));
  SH_ASSIGN_OR_RETURN(const std::optional<int64_t> kv_heads,
                      file.Int("llama.attention.head_count_kv"));
  config.kv_heads = kv_heads.value_or(config.heads);
  SH_ASSIGN_OR_RETURN(const std::optional<int64_t> head_dim,
                      file.Int("llama.attention.key_length"));
  if (!head_dim.has_value() && (config.heads <= 0 || config.hidden_size % config.heads != 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("llama.embedding_length (", config.hidden_size,
                     ") is not a multiple of llama.attention.head_count (", config.heads, ")"));
  }
  config.head_dim = head_dim.has_value() ? *head_dim : config.hidden_size / config.heads;
  SH_ASSIGN_OR_RETURN(config.max_positions, RequiredInt(file, "llama.context_length"));
  SH_ASSIGN_OR_RETURN(const std::optional<double> theta, file.Number("llama.rope.freq_base"));
  config.rope_theta = theta.value_or(10000.0);  // llama.cpp's default
  SH_ASSIGN_OR_RETURN(const std::optional<double> eps,
                      file.Number("llama.attention.layer_norm_rms_epsilon"));
  if (!eps.has_value()) return MissingKey("llama.attention.layer_norm_rms_epsilon");
  config.rms_norm_eps = *eps;
  SH_ASSIGN_OR_RETURN(config.bos_id, file.Int("tokenizer.ggml.bos_token_id"));
  SH_ASSIGN_OR_RETURN(config.eos_id, file.Int("tokenizer.ggml.eos_token_id"));
  SH_ASSIGN_OR_RETURN(config.pad_id, file.Int("tokenizer.ggml.padding_token_id"));
  SH_RETURN_IF_ERROR(config.Validate());
  SH_RETURN_IF_ERROR(RefuseVariants(file, config));
  return config;
}

absl::StatusOr<std::shared_ptr<const Weights>> GgufModelWeights(
    std::shared_ptr<const GgufFile> file, const ModelConfig& config) {
  const std::vector<ModelConfig::Parameter> parameters = config.Parameters();
  auto weights = std::make_shared<GgufWeights>(file);
  for (const ModelConfig::Parameter& parameter : parameters) {
    const std::string name = GgufName(parameter.name);
    const GgufTensor* tensor = file->FindTensor(name);
    if (tensor == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat(file->path(), ": tensor \"", name, "\" is missing"));
    }
    if (tensor->shape != parameter.shape) {
      return absl::InvalidArgumentError(absl::StrCat(
          file->path(), ": tensor \"", name, "\" has the shape ", ShapeText(tensor->shape),
          ", the config wants ", ShapeText(parameter.shape)));
    }
    const bool rotated =
        absl::EndsWith(name, ".attn_q.weight") || absl::EndsWith(name, ".attn_k.weight");
    weights->Add({parameter.name, std::string(tensor->type->name), parameter.shape}, *tensor,
                 rotated ? config.head_dim : 0);
  }
  if (file->tensors().size() != parameters.size()) {
    absl::flat_hash_map<std::string, bool> known;
    for (const ModelConfig::Parameter& parameter : parameters) known[GgufName(parameter.name)];
    for (const GgufTensor& tensor : file->tensors()) {
      if (known.contains(tensor.name)) continue;
      return absl::UnimplementedError(
          absl::StrCat(file->path(), ": tensor \"", tensor.name.substr(0, 80),
                       "\" is not part of a plain Llama model; what it does is not implemented"));
    }
  }
  return std::shared_ptr<const Weights>(std::move(weights));
}

}  // namespace stillhouse

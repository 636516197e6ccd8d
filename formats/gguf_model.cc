#include "formats/gguf_model.h"

#include <array>
#include <cstring>
#include <type_traits>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/strip.h"
#include "common/status.h"

namespace stillhouse {
namespace {

// For architecture "llama" llama.cpp rotates neighbouring pairs of a head where Hugging Face
// rotates its two halves, so it stores row (2i + j) of each head's q and k, weights and biases,
// where Hugging Face has row (j * head_dim / 2 + i). Qwen's rows lie as Hugging Face has them.
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

  absl::Status ReadRowsF32(absl::string_view name, int64_t first,
                           absl::Span<float> out) const override {
    return ForRows(name, first, out, [](const GgmlType& type, absl::string_view rows, float* to) {
      GgmlDecode(type, rows, {to, rows.size() / type.bytes * type.block});
    });
  }

  absl::Status CopyRows(absl::string_view name, int64_t first,
                        absl::Span<char> out) const override {
    return ForRows(name, first, out, [](const GgmlType&, absl::string_view rows, char* to) {
      std::memcpy(to, rows.data(), rows.size());
    });
  }

  absl::StatusOr<absl::string_view> RawBytes(absl::string_view name) const override {
    const auto found = index_.find(name);
    if (found == index_.end()) return NotThere(name);
    return stored_[found->second].tensor->bytes;
  }

  void GiveBack(absl::string_view bytes) const override { file_->GiveBack(bytes); }

  std::vector<FileIdentity> files() const override { return file_->identities(); }

 private:
  struct Stored {
    const GgufTensor* tensor;
    int64_t head_dim;  // 0: the rows lie as they should
  };

  // Calls read(type, bytes of stored rows, where they belong in `out`) for the rows from `first` on
  // that fill `out`: once, or row by row where they lie in another order.
  template <typename T, typename Read>
  absl::Status ForRows(absl::string_view name, int64_t first, absl::Span<T> out, Read read) const {
    const auto found = index_.find(name);
    if (found == index_.end()) return NotThere(name);
    const auto& [tensor, rotated] = stored_[found->second];
    const auto all = static_cast<size_t>(tensor->shape.front());
    const size_t row_bytes = tensor->bytes.size() / all;
    const size_t row_out = std::is_same_v<T, float>
                               ? row_bytes / tensor->type->bytes * tensor->type->block
                               : row_bytes;
    const auto begin = static_cast<size_t>(first);
    const size_t count = out.size() / row_out;
    SH_CHECK(first >= 0 && count * row_out == out.size() && begin + count <= all, name);
    if (rotated == 0) {
      read(*tensor->type, tensor->bytes.substr(begin * row_bytes, count * row_bytes), out.data());
      return absl::OkStatus();
    }
    const auto head_dim = static_cast<size_t>(rotated);
    for (size_t row = begin; row < begin + count; ++row) {
      const size_t within = row % head_dim;
      const size_t source = row - within + 2 * (within % (head_dim / 2)) + within / (head_dim / 2);
      read(*tensor->type, tensor->bytes.substr(source * row_bytes, row_bytes),
           out.data() + (row - begin) * row_out);
    }
    return absl::OkStatus();
  }

  absl::Status NotThere(absl::string_view name) const {
    return absl::NotFoundError(absl::StrCat(file_->path(), ": no tensor \"", name, "\""));
  }

  std::shared_ptr<const GgufFile> file_;
  std::vector<TensorInfo> infos_;
  std::vector<Stored> stored_;
  absl::flat_hash_map<std::string, size_t> index_;
};

}  // namespace

std::string GgufTensorName(absl::string_view name) {
  static constexpr std::array<std::pair<absl::string_view, absl::string_view>, 11> kLayer = {{
      {"self_attn.q_proj.", "attn_q."},
      {"self_attn.k_proj.", "attn_k."},
      {"self_attn.v_proj.", "attn_v."},
      {"self_attn.o_proj.", "attn_output."},
      {"self_attn.q_norm.", "attn_q_norm."},
      {"self_attn.k_norm.", "attn_k_norm."},
      {"mlp.gate_proj.", "ffn_gate."},
      {"mlp.up_proj.", "ffn_up."},
      {"mlp.down_proj.", "ffn_down."},
      {"input_layernorm.", "attn_norm."},
      {"post_attention_layernorm.", "ffn_norm."},
  }};
  if (name == "model.embed_tokens.weight") return "token_embd.weight";
  if (name == "model.norm.weight") return "output_norm.weight";
  if (name == "lm_head.weight") return "output.weight";
  SH_CHECK(absl::ConsumePrefix(&name, "model.layers."), name);
  const size_t dot = name.find('.');
  absl::string_view rest = name.substr(dot + 1);
  for (const auto& [ours, theirs] : kLayer) {
    if (absl::ConsumePrefix(&rest, ours)) {  // leaves "weight" or "bias"
      return absl::StrCat("blk.", name.substr(0, dot), ".", theirs, rest);
    }
  }
  SH_CHECK(false, "no GGUF name for a parameter: ", name);
  return "";
}

absl::StatusOr<std::shared_ptr<const Weights>> GgufModelWeights(
    std::shared_ptr<const GgufFile> file, const ModelConfig& config) {
  const std::vector<ModelConfig::Parameter> parameters = config.Parameters();
  auto weights = std::make_shared<GgufWeights>(file);
  for (const ModelConfig::Parameter& parameter : parameters) {
    const std::string name = GgufTensorName(parameter.name);
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
    const bool rotated = config.architecture == "llama" && (absl::StrContains(name, ".attn_q.") ||
                                                            absl::StrContains(name, ".attn_k."));
    if (parameter.shape.size() == 1 && tensor->type->block != 1) {
      return absl::UnimplementedError(
          absl::StrCat(file->path(), ": tensor \"", name,
                       "\" is quantised: not implemented for a norm or a bias"));
    }
    weights->Add({parameter.name, std::string(tensor->type->name), parameter.shape}, *tensor,
                 rotated ? config.head_dim : 0);
  }
  if (file->tensors().size() != parameters.size()) {
    absl::flat_hash_map<std::string, bool> known;
    for (const ModelConfig::Parameter& parameter : parameters)
      known[GgufTensorName(parameter.name)];
    known[kRopeDivisors];
    for (const GgufTensor& tensor : file->tensors()) {
      if (known.contains(tensor.name)) continue;
      return absl::UnimplementedError(
          absl::StrCat(file->path(), ": tensor \"", tensor.name.substr(0, 80),
                       "\" is not part of a ", config.architecture,
                       " model as its metadata describes it; what it does is not implemented"));
    }
  }
  return std::shared_ptr<const Weights>(std::move(weights));
}

}  // namespace stillhouse

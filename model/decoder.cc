#include "model/decoder.h"

#include <map>
#include <numeric>
#include <utility>

#include "ATen/ops/cat.h"
#include "ATen/ops/embedding.h"
#include "ATen/ops/empty.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status.h"
#include "model/decoder_layer.h"
#include "model/ops.h"
#include "model/torch_status.h"

namespace stillhouse {
namespace {

constexpr char kEmbedding[] = "model.embed_tokens.weight";
constexpr char kFinalNorm[] = "model.norm.weight";
constexpr char kHead[] = "lm_head.weight";

// The fields of a layer with the names that follow "model.layers.<i>.".
struct LayerField {
  absl::string_view name;
  at::Tensor LayerWeights::*tensor;
};
constexpr LayerField kLayerFields[] = {
    {"input_layernorm.weight", &LayerWeights::input_norm},
    {"self_attn.q_proj.weight", &LayerWeights::q},
    {"self_attn.k_proj.weight", &LayerWeights::k},
    {"self_attn.v_proj.weight", &LayerWeights::v},
    {"self_attn.o_proj.weight", &LayerWeights::o},
    {"post_attention_layernorm.weight", &LayerWeights::attention_norm},
    {"mlp.gate_proj.weight", &LayerWeights::gate},
    {"mlp.up_proj.weight", &LayerWeights::up},
    {"mlp.down_proj.weight", &LayerWeights::down},
};

// Where each parameter of `weights.config` lives in `weights`.
std::map<std::string, at::Tensor*> Places(DecoderWeights& weights) {
  std::map<std::string, at::Tensor*> places = {{kEmbedding, &weights.embedding},
                                               {kFinalNorm, &weights.final_norm}};
  if (!weights.config.tie_embeddings) places[kHead] = &weights.head;
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    for (const LayerField& field : kLayerFields) {
      places[absl::StrCat("model.layers.", i, ".", field.name)] =
          &(weights.layers[i].*field.tensor);
    }
  }
  return places;
}

absl::Status CheckTensor(const ModelConfig::Parameter& parameter, const at::Tensor& tensor,
                         at::ScalarType dtype) {
  if (!tensor.defined() || tensor.sizes() != at::IntArrayRef(parameter.shape)) {
    return absl::InvalidArgumentError(absl::StrCat(parameter.name, ": expected the shape [",
                                                   absl::StrJoin(parameter.shape, ", "), "]"));
  }
  if (tensor.scalar_type() != dtype || !(dtype == at::kFloat || dtype == at::kBFloat16)) {
    return absl::InvalidArgumentError(
        absl::StrCat(parameter.name, ": all tensors must be float32, or all bfloat16, not ",
                     c10::toString(tensor.scalar_type())));
  }
  if (!tensor.is_contiguous()) {
    return absl::InvalidArgumentError(absl::StrCat(parameter.name, ": not contiguous"));
  }
  return absl::OkStatus();
}

absl::Status CheckBatch(const ModelConfig& config, const DecoderBatch& batch) {
  if (batch.ids.dim() != 1 || batch.ids.scalar_type() != at::kLong) {
    return absl::InvalidArgumentError("a batch's ids must be one row of 64-bit integers");
  }
  int64_t sum = 0;
  for (const int64_t length : batch.lengths) {
    if (length < 1 || length > config.max_positions) {
      return absl::InvalidArgumentError(absl::StrCat(
          "a document of ", length, " tokens; this model takes 1 to ", config.max_positions));
    }
    sum += length;
  }
  if (batch.lengths.empty() || sum != batch.ids.size(0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("lengths sum to ", sum, ", the batch has ", batch.ids.size(0), " tokens"));
  }
  const at::Tensor ids = batch.ids.contiguous();
  const int64_t* id = ids.const_data_ptr<int64_t>();
  for (int64_t t = 0; t < sum; ++t) {
    if (id[t] < 0 || id[t] >= config.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(
          "token id ", id[t], " at ", t, " is not below the vocabulary's ", config.vocab_size));
    }
  }
  return absl::OkStatus();
}

// Neighbours of equal length, from row `begin`.
struct Run {
  int64_t begin = 0, documents = 0, length = 0;
};

std::vector<Run> RunsOf(const std::vector<int64_t>& lengths) {
  std::vector<Run> runs;
  int64_t begin = 0;
  for (const int64_t length : lengths) {
    if (runs.empty() || runs.back().length != length) runs.push_back({begin, 0, length});
    ++runs.back().documents;
    begin += length;
  }
  return runs;
}

at::Tensor AttendRuns(const std::vector<Run>& runs, const at::Tensor& q, const at::Tensor& k,
                      const at::Tensor& v) {
  if (runs.size() == 1) return AttendDocuments(q, k, v, runs[0].documents);
  std::vector<at::Tensor> parts;
  parts.reserve(runs.size());
  for (const Run& run : runs) {
    const int64_t rows = run.documents * run.length;
    parts.push_back(AttendDocuments(q.narrow(0, run.begin, rows), k.narrow(0, run.begin, rows),
                                    v.narrow(0, run.begin, rows), run.documents));
  }
  return at::cat(parts);
}

at::Tensor Positions(const std::vector<int64_t>& lengths, int64_t tokens) {
  at::Tensor position = at::empty({tokens}, at::TensorOptions().dtype(at::kInt));
  int32_t* next = position.mutable_data_ptr<int32_t>();
  for (const int64_t length : lengths) {
    std::iota(next, next + length, 0);
    next += length;
  }
  return position;
}

at::Tensor Forward(const DecoderWeights& weights, const DecoderBatch& batch, LayerHook hook) {
  const ModelConfig& config = weights.config;
  const std::vector<Run> runs = RunsOf(batch.lengths);
  int64_t longest = 0;
  for (const Run& run : runs) longest = std::max(longest, run.length);
  const at::ScalarType dtype = weights.embedding.scalar_type();
  const ops::RotaryTable table =
      ops::MakeRotaryTable(config.rope_theta, config.head_dim, longest, dtype);
  const at::Tensor position = Positions(batch.lengths, batch.ids.size(0));

  at::Tensor x = at::embedding(weights.embedding, batch.ids);
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    const at::Tensor next =
        RunLayer(weights.layers[i], config, table, position, x,
                 [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
                   return AttendRuns(runs, q, k, v);
                 });
    hook(static_cast<int64_t>(i), x, next);
    x = next;
  }
  return ops::RmsNorm(x, weights.final_norm, config.rms_norm_eps);
}

}  // namespace

std::vector<NamedTensor> DecoderWeights::Named() const {
  DecoderWeights copy = *this;  // shares the tensors; Places needs something it may write to
  const std::map<std::string, at::Tensor*> places = Places(copy);
  std::vector<NamedTensor> named;
  for (const ModelConfig::Parameter& parameter : config.Parameters()) {
    named.push_back({parameter.name, *places.at(parameter.name)});
  }
  return named;
}

absl::StatusOr<DecoderWeights> BindDecoder(
    const ModelConfig& config,
    absl::FunctionRef<absl::StatusOr<at::Tensor>(const ModelConfig::Parameter&)> tensor_of) {
  SH_RETURN_IF_ERROR(config.Validate());
  DecoderWeights weights;
  weights.config = config;
  weights.layers.resize(static_cast<size_t>(config.layers));
  const std::map<std::string, at::Tensor*> places = Places(weights);
  std::optional<at::ScalarType> dtype;
  for (const ModelConfig::Parameter& parameter : config.Parameters()) {
    const auto place = places.find(parameter.name);
    if (place == places.end()) {
      return absl::UnimplementedError(
          absl::StrCat("the decoder has no parameter ", parameter.name));
    }
    SH_ASSIGN_OR_RETURN_AT(at::Tensor tensor, tensor_of(parameter), parameter.name);
    if (tensor.defined() && !dtype.has_value()) dtype = tensor.scalar_type();
    SH_RETURN_IF_ERROR(CheckTensor(parameter, tensor, dtype.value_or(at::kFloat)));
    *place->second = std::move(tensor);
  }
  if (config.tie_embeddings) weights.head = weights.embedding;
  for (const auto& [name, place] : places) {
    SH_CHECK(place->defined(), name, " is not among the parameters of its own config");
  }
  return weights;
}

absl::StatusOr<DecoderWeights> LoadDecoder(const ModelFiles& files, at::ScalarType dtype) {
  return BindDecoder(
      files.config, [&](const ModelConfig::Parameter& parameter) -> absl::StatusOr<at::Tensor> {
        at::Tensor fp32;
        SH_RETURN_IF_ERROR(CallTorch(
            [&] { fp32 = at::empty(parameter.shape, at::TensorOptions().dtype(at::kFloat)); }));
        SH_RETURN_IF_ERROR(files.weights->ReadF32(
            parameter.name,
            absl::MakeSpan(fp32.mutable_data_ptr<float>(), static_cast<size_t>(fp32.numel()))));
        at::Tensor cast;
        SH_RETURN_IF_ERROR(CallTorch([&] { cast = fp32.to(dtype); }));
        return cast;
      });
}

absl::StatusOr<DecoderWeights> KeepLayers(const DecoderWeights& weights,
                                          const std::vector<int64_t>& kept) {
  DecoderWeights shallow = weights;
  shallow.layers.clear();
  int64_t last = -1;
  for (const int64_t layer : kept) {
    if (layer <= last || layer >= weights.config.layers) {
      return absl::InvalidArgumentError(absl::StrCat(
          "layer ", layer, ": kept layers must ascend and be below ", weights.config.layers));
    }
    shallow.layers.push_back(weights.layers[static_cast<size_t>(layer)]);
    last = layer;
  }
  if (kept.empty()) return absl::InvalidArgumentError("no layer is kept");
  shallow.config.layers = static_cast<int64_t>(kept.size());
  return shallow;
}

absl::StatusOr<at::Tensor> ForwardHidden(const DecoderWeights& weights, const DecoderBatch& batch,
                                         LayerHook hook) {
  SH_RETURN_IF_ERROR(CheckBatch(weights.config, batch));
  at::Tensor hidden;
  SH_RETURN_IF_ERROR(CallTorch([&] { hidden = Forward(weights, batch, hook); }));
  return hidden;
}

absl::StatusOr<at::Tensor> ForwardHidden(const DecoderWeights& weights, const DecoderBatch& batch) {
  return ForwardHidden(weights, batch, [](int64_t, const at::Tensor&, const at::Tensor&) {});
}

}  // namespace stillhouse

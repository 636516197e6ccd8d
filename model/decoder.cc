#include "model/decoder.h"

#include <sys/mman.h>
#include <unistd.h>

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
#include "model/rotary.h"
#include "model/torch_status.h"

namespace stillhouse {
namespace {

constexpr char kEmbedding[] = "model.embed_tokens.weight";
constexpr char kFinalNorm[] = "model.norm.weight";
constexpr char kHead[] = "lm_head.weight";

// The fields of a layer with the names that follow "model.layers.<i>.". Biases and head norms are
// there where the config's parameters name them, the others always.
struct LayerField {
  absl::string_view name;
  at::Tensor LayerWeights::*tensor;
  bool always = true;
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
    {"self_attn.q_proj.bias", &LayerWeights::q_bias, false},
    {"self_attn.k_proj.bias", &LayerWeights::k_bias, false},
    {"self_attn.v_proj.bias", &LayerWeights::v_bias, false},
    {"self_attn.o_proj.bias", &LayerWeights::o_bias, false},
    {"self_attn.q_norm.weight", &LayerWeights::q_norm, false},
    {"self_attn.k_norm.weight", &LayerWeights::k_norm, false},
    {"mlp.gate_proj.bias", &LayerWeights::gate_bias, false},
    {"mlp.up_proj.bias", &LayerWeights::up_bias, false},
    {"mlp.down_proj.bias", &LayerWeights::down_bias, false},
};

// Where each parameter that `weights.config` may have lives in `weights`.
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
  if (!batch.whole_lengths.empty() && batch.whole_lengths.size() != batch.lengths.size()) {
    return absl::InvalidArgumentError("a batch must tell the whole length of each document");
  }
  for (const std::vector<int64_t>* lengths : {&batch.lengths, &batch.whole_lengths}) {
    for (const int64_t length : *lengths) {
      if (length >= 1 && length <= config.TokensMax()) continue;
      return absl::InvalidArgumentError(absl::StrCat(
          "a document of ", length, " tokens; this model takes 1 to ", config.TokensMax()));
    }
  }
  const int64_t sum = std::accumulate(batch.lengths.begin(), batch.lengths.end(), int64_t{0});
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
                      const at::Tensor& v, int64_t window) {
  if (runs.size() == 1) return AttendDocuments(q, k, v, runs[0].documents, window);
  std::vector<at::Tensor> parts;
  parts.reserve(runs.size());
  for (const Run& run : runs) {
    const int64_t rows = run.documents * run.length;
    parts.push_back(AttendDocuments(q.narrow(0, run.begin, rows), k.narrow(0, run.begin, rows),
                                    v.narrow(0, run.begin, rows), run.documents, window));
  }
  return at::cat(parts);
}

at::Tensor Forward(const DecoderWeights& weights, const DecoderBatch& batch, LayerHook hook) {
  const ModelConfig& config = weights.config;
  const std::vector<Run> runs = RunsOf(batch.lengths);
  const RotaryAngles angles = AnglesOf(
      config, batch.lengths, batch.whole_lengths.empty() ? batch.lengths : batch.whole_lengths,
      weights.embedding.scalar_type());

  at::Tensor x = at::embedding(weights.embedding, batch.ids);
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    const int64_t window = config.WindowOf(static_cast<int64_t>(i));
    const at::Tensor next =
        RunLayer(weights.layers[i], config, angles.table, angles.row, x,
                 [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
                   return AttendRuns(runs, q, k, v, window);
                 });
    hook(static_cast<int64_t>(i), x, next);
    x = next;
  }
  return ops::RmsNorm(x, weights.final_norm, config.rms_norm_eps);
}

// Memory that is still to be written: generation, which reads all weights for each token, reads
// them 1.3 to 1.6 times as fast from huge pages.
void AdviseHugePages(void* data, size_t bytes) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  // Advice: where the system grants none, pages stay small.
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
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
  for (const LayerWeights& layer : weights.layers) {
    for (const LayerField& field : kLayerFields) {
      SH_CHECK(!field.always || (layer.*field.tensor).defined(), field.name);
    }
  }
  return weights;
}

absl::StatusOr<DecoderWeights> LoadDecoder(const ModelFiles& files, at::ScalarType dtype,
                                           const LoadProgressCall& progress) {
  std::vector<LoadTarget> targets;
  SH_ASSIGN_OR_RETURN(
      DecoderWeights weights,
      BindDecoder(
          files.config, [&](const ModelConfig::Parameter& parameter) -> absl::StatusOr<at::Tensor> {
            at::Tensor tensor;
            SH_RETURN_IF_ERROR(CallTorch(
                [&] { tensor = at::empty(parameter.shape, at::TensorOptions().dtype(dtype)); }));
            AdviseHugePages(tensor.mutable_data_ptr(), tensor.nbytes());
            targets.push_back({parameter.name, dtype == at::kFloat ? "F32" : "BF16",
                               static_cast<char*>(tensor.mutable_data_ptr())});
            return tensor;
          }));
  SH_RETURN_IF_ERROR(LoadTensors(*files.weights, targets, progress));
  return weights;
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
  shallow.config = weights.config.WithLayers(kept);
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

#include "common/status.h"
#include "model/parallel.h"
#include "student/losses/row_kernels.h"
#include "student/planned/planned_step.h"
#include "student/planned/step_kernels.h"

namespace stillhouse::planned {
namespace {

constexpr int64_t kGradientsPerTask = 1 << 15;

template <typename V>
Matrix MatrixOf(const V* data, int64_t rows, int64_t columns, int64_t stride) {
  return {const_cast<V*>(data), rows, columns, stride};
}

}  // namespace

template <typename T>
void PlannedStep<T>::ProjectBackward(const ProjectionGroup<T>& group, const T* dy, int64_t inputs,
                                     T* dx) {
  const int64_t stride = group.outputs;
  const Matrix out = MatrixOf(dx, tokens_, inputs, inputs);
  if (group.contiguous) {
    products_.Times(MatrixOf(dy, tokens_, stride, stride),
                    MatrixOf(group.weights[0].data, stride, inputs, inputs), /*add=*/false, out);
    return;
  }
  int64_t column = 0;
  for (const Weight<T>& weight : group.weights) {
    products_.Times(MatrixOf(dy + column, tokens_, weight.rows, stride),
                    MatrixOf(weight.data, weight.rows, inputs, inputs), /*add=*/column > 0, out);
    column += weight.rows;
  }
}

template <typename T>
absl::Status PlannedStep<T>::AddProjectionGradients(const ProjectionGroup<T>& group, const T* dy,
                                                    const T* x, int64_t inputs,
                                                    GradientSink& sink) {
  const int64_t stride = group.outputs;
  int64_t column = 0;
  for (size_t i = 0; i < group.weights.size(); ++i) {
    const Weight<T>& weight = group.weights[i];
    SH_ASSIGN_OR_RETURN(const GradientPlace place, sink.Begin(weight.index));
    if (place.data != nullptr) {
      products_.TransposedTimesWide(MatrixOf(dy + column, tokens_, weight.rows, stride),
                                    MatrixOf(x, tokens_, inputs, inputs), place.add, place.data);
      SH_RETURN_IF_ERROR(sink.Ready(weight.index));
    }
    const Weight<T>& bias = group.biases[i];
    if (bias.data != nullptr) {
      SH_ASSIGN_OR_RETURN(const GradientPlace bias_place, sink.Begin(bias.index));
      if (bias_place.data != nullptr) {
        AddColumnSums(dy + column, stride, tokens_, bias.rows, bias_place.add, bias_place.data);
        SH_RETURN_IF_ERROR(sink.Ready(bias.index));
      }
    }
    column += weight.rows;
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status PlannedStep<T>::AddNormParts(const Weight<T>& weight, int64_t width,
                                          GradientSink& sink) {
  SH_ASSIGN_OR_RETURN(const GradientPlace place, sink.Begin(weight.index));
  if (place.data == nullptr) return absl::OkStatus();
  AddColumnSums(static_cast<const float*>(buffers_.norm_parts.data()), width, NormParts(tokens_),
                width, place.add, place.data);
  return sink.Ready(weight.index);
}

template <typename T>
absl::Status PlannedStep<T>::BackwardNorm(const Weight<T>& weight, const float* input,
                                          const float* rstd, const T* dy, bool add,
                                          GradientSink& sink) {
  NormBackward(input, weight.data, rstd, dy, add, tokens_, config_.hidden_size,
               buffers_.stream_gradient.data(), buffers_.stream_gradient_rounded.data(),
               buffers_.norm_parts.data());
  return AddNormParts(weight, config_.hidden_size, sink);
}

template <typename T>
absl::Status PlannedStep<T>::BackwardFeedForward(size_t layer, GradientSink& sink) {
  LayerBuffers<T>& own = buffers_.layers[layer];
  const LayerWeightsOf<T>& weights = weights_.layers[layer];
  const int64_t hidden = config_.hidden_size, inner = config_.intermediate_size;
  const T* dy = buffers_.stream_gradient_rounded.data();
  ProjectBackward(weights.down, dy, inner, buffers_.wide.data());
  SwiGluRowsBackward(own.gated.data() + inner, own.gated.data(), 2 * inner, buffers_.wide.data(),
                     tokens_, inner, buffers_.wide_second.data());
  SH_RETURN_IF_ERROR(
      AddProjectionGradients(weights.down, dy, buffers_.wide_second.data(), inner, sink));
  ProjectBackward(weights.gated, own.gated.data(), hidden, buffers_.branch.data());
  SH_RETURN_IF_ERROR(AddProjectionGradients(weights.gated, own.gated.data(),
                                            own.normed_middle.data(), hidden, sink));
  return BackwardNorm(weights.attention_norm, own.middle.data(), own.middle_rstd.data(),
                      buffers_.branch.data(), /*add=*/true, sink);
}

template <typename T>
absl::Status PlannedStep<T>::NormMixedBackward(size_t layer, GradientSink& sink) {
  LayerBuffers<T>& own = buffers_.layers[layer];
  const LayerWeightsOf<T>& weights = weights_.layers[layer];
  const int64_t size = config_.head_dim, kv_heads = config_.kv_heads, heads = config_.heads;
  T* keys = buffers_.mixed_gradient.data() + kv_heads * size;
  NormHeadsBackward(own.raw_heads.data(), (kv_heads + heads) * size, weights.k_norm.data,
                    own.head_rstd.data(), tokens_, kv_heads, size, keys, mixed_width(),
                    buffers_.norm_parts.data());
  SH_RETURN_IF_ERROR(AddNormParts(weights.k_norm, size, sink));
  NormHeadsBackward(own.raw_heads.data() + kv_heads * size, (kv_heads + heads) * size,
                    weights.q_norm.data, own.head_rstd.data() + tokens_ * kv_heads, tokens_, heads,
                    size, keys + kv_heads * size, mixed_width(), buffers_.norm_parts.data());
  return AddNormParts(weights.q_norm, size, sink);
}

template <typename T>
absl::Status PlannedStep<T>::BackwardAttention(size_t layer, GradientSink& sink,
                                               StepObserver* observer) {
  LayerBuffers<T>& own = buffers_.layers[layer];
  const LayerWeightsOf<T>& weights = weights_.layers[layer];
  const auto index = static_cast<int64_t>(layer);
  const int64_t hidden = config_.hidden_size, inputs = config_.heads * config_.head_dim;
  const T* dy = buffers_.stream_gradient_rounded.data();
  ProjectBackward(weights.output, dy, inputs, buffers_.attended_gradient.data());
  SH_RETURN_IF_ERROR(AddProjectionGradients(weights.output, dy, own.attended.data(), inputs, sink));
  if (observer != nullptr) {
    observer->AddAttentionGradient(
        index, {buffers_.attended_gradient.data(), static_cast<size_t>(tokens_ * inputs),
                sizeof(T) == 2 ? DType::kBF16 : DType::kF32});
  }
  T* d_mixed = buffers_.mixed_gradient.data();
  attention_.Backward(lengths_, config_.WindowOf(index), {own.mixed.data(), mixed_width()},
                      own.attended.data(), buffers_.attended_gradient.data(), own.lse.data(),
                      d_mixed);
  RotateMixed(d_mixed, /*inverse=*/true);
  if (config_.qk_norm) SH_RETURN_IF_ERROR(NormMixedBackward(layer, sink));
  ProjectBackward(weights.attention, d_mixed, hidden, buffers_.branch.data());
  SH_RETURN_IF_ERROR(
      AddProjectionGradients(weights.attention, d_mixed, own.normed.data(), hidden, sink));
  return BackwardNorm(weights.input_norm, own.input.data(), own.input_rstd.data(),
                      buffers_.branch.data(), /*add=*/true, sink);
}

template <typename T>
absl::Status PlannedStep<T>::BackwardLayer(size_t layer, GradientSink& sink,
                                           StepObserver* observer) {
  if (observer != nullptr) {
    const auto count = static_cast<size_t>(tokens_ * config_.hidden_size);
    float* gradient = buffers_.stream_gradient.data();
    if (observer->AddLayerGradient(static_cast<int64_t>(layer), {gradient, count, DType::kF32})) {
      StoreRow(gradient, count, buffers_.stream_gradient_rounded.data());
    }
  }
  SH_RETURN_IF_ERROR(BackwardFeedForward(layer, sink));
  return BackwardAttention(layer, sink, observer);
}

template <typename T>
absl::Status PlannedStep<T>::AddEmbeddingGradient(const MicroBatch& batch, GradientSink& sink) {
  const Weight<T>& embedding = weights_.embedding;
  SH_ASSIGN_OR_RETURN(const GradientPlace place, sink.Begin(embedding.index));
  if (place.data == nullptr) return absl::OkStatus();
  if (!place.add) {
    ParallelFor(0, embedding.count(), kGradientsPerTask, [&](int64_t begin, int64_t end) {
      std::fill(place.data + begin, place.data + end, 0.0f);
    });
  }
  AddToRows(batch.ids.data(), buffers_.stream_gradient.data(), tokens_, config_.hidden_size,
            place.data);
  return sink.Ready(embedding.index);
}

// From the gradients of the loss rows, in picked_gradient, to every parameter's.
template <typename T>
absl::Status PlannedStep<T>::Backward(const MicroBatch& batch, GradientSink& sink,
                                      StepObserver* observer) {
  const T* d_hidden = buffers_.picked_gradient.data();
  const auto picked = static_cast<int64_t>(batch.loss_rows.size());
  if (picked < tokens_) {
    SpreadRows(d_hidden, batch.loss_rows.data(), picked, tokens_, config_.hidden_size,
               buffers_.branch.data());
    d_hidden = buffers_.branch.data();
  }
  SH_RETURN_IF_ERROR(BackwardNorm(weights_.final_norm, buffers_.last.data(),
                                  buffers_.last_rstd.data(), d_hidden, /*add=*/false, sink));
  for (size_t layer = weights_.layers.size(); layer > 0; --layer) {
    SH_RETURN_IF_ERROR(BackwardLayer(layer - 1, sink, observer));
  }
  return AddEmbeddingGradient(batch, sink);
}

#define SH_INSTANTIATE(T)                                                                          \
  template void PlannedStep<T>::ProjectBackward(const ProjectionGroup<T>&, const T*, int64_t, T*); \
  template absl::Status PlannedStep<T>::AddProjectionGradients(                                    \
      const ProjectionGroup<T>&, const T*, const T*, int64_t, GradientSink&);                      \
  template absl::Status PlannedStep<T>::AddNormParts(const Weight<T>&, int64_t, GradientSink&);    \
  template absl::Status PlannedStep<T>::BackwardNorm(const Weight<T>&, const float*, const float*, \
                                                     const T*, bool, GradientSink&);               \
  template absl::Status PlannedStep<T>::BackwardFeedForward(size_t, GradientSink&);                \
  template absl::Status PlannedStep<T>::NormMixedBackward(size_t, GradientSink&);                  \
  template absl::Status PlannedStep<T>::BackwardAttention(size_t, GradientSink&, StepObserver*);   \
  template absl::Status PlannedStep<T>::BackwardLayer(size_t, GradientSink&, StepObserver*);       \
  template absl::Status PlannedStep<T>::AddEmbeddingGradient(const MicroBatch&, GradientSink&);    \
  template absl::Status PlannedStep<T>::Backward(const MicroBatch&, GradientSink&, StepObserver*)
SH_INSTANTIATE(float);
SH_INSTANTIATE(uint16_t);
#undef SH_INSTANTIATE

}  // namespace stillhouse::planned

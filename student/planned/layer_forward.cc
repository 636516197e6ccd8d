#include "common/status.h"
#include "student/planned/planned_step.h"
#include "student/planned/step_kernels.h"

namespace stillhouse::planned {
namespace {

template <typename V>
Matrix MatrixOf(const V* data, int64_t rows, int64_t columns, int64_t stride) {
  return {const_cast<V*>(data), rows, columns, stride};
}

template <typename T>
constexpr DType kDType = sizeof(T) == 2 ? DType::kBF16 : DType::kF32;

}  // namespace

template <typename T>
absl::Status PlannedStep<T>::Await(const ProjectionGroup<T>& group, GradientSink& sink) {
  for (size_t i = 0; i < group.weights.size(); ++i) {
    SH_RETURN_IF_ERROR(sink.AwaitWeights(group.weights[i].index));
    if (group.biases[i].data != nullptr) {
      SH_RETURN_IF_ERROR(sink.AwaitWeights(group.biases[i].index));
    }
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status PlannedStep<T>::Project(const ProjectionGroup<T>& group, const T* x, int64_t inputs,
                                     T* out, GradientSink& sink) {
  SH_RETURN_IF_ERROR(Await(group, sink));
  const Matrix input = MatrixOf(x, tokens_, inputs, inputs);
  const int64_t stride = group.outputs;
  if (group.contiguous) {
    products_.TimesTransposed(input, MatrixOf(group.weights[0].data, stride, inputs, inputs),
                              /*add=*/false, MatrixOf(out, tokens_, stride, stride));
    return absl::OkStatus();
  }
  int64_t column = 0;
  for (size_t i = 0; i < group.weights.size(); ++i) {
    const Weight<T>& weight = group.weights[i];
    const T* bias = group.biases[i].data;
    // The product is added to the bias before the sum is rounded.
    if (bias != nullptr) FillRows(bias, tokens_, weight.rows, out + column, stride);
    products_.TimesTransposed(input, MatrixOf(weight.data, weight.rows, inputs, inputs),
                              /*add=*/bias != nullptr,
                              MatrixOf(out + column, tokens_, weight.rows, stride));
    column += weight.rows;
  }
  return absl::OkStatus();
}

template <typename T>
void PlannedStep<T>::RotateMixed(T* mixed, bool inverse) {
  // Keys and queries stand side by side and turn alike.
  RotateHeads(mixed + config_.kv_heads * config_.head_dim, mixed_width(), cos_, sin_,
              buffers_.positions.data(), inverse, tokens_, config_.kv_heads + config_.heads,
              config_.head_dim);
}

template <typename T>
absl::Status PlannedStep<T>::NormMixed(size_t layer, GradientSink& sink) {
  LayerBuffers<T>& own = buffers_.layers[layer];
  const LayerWeightsOf<T>& weights = weights_.layers[layer];
  const int64_t size = config_.head_dim, width = mixed_width();
  const int64_t raw_width = (config_.kv_heads + config_.heads) * size;
  const auto eps = static_cast<float>(config_.rms_norm_eps);
  SH_RETURN_IF_ERROR(sink.AwaitWeights(weights.k_norm.index));
  SH_RETURN_IF_ERROR(sink.AwaitWeights(weights.q_norm.index));
  T* keys = own.mixed.data() + config_.kv_heads * size;
  for (int64_t t = 0; t < tokens_; ++t) {
    std::copy_n(keys + t * width, raw_width, own.raw_heads.data() + t * raw_width);
  }
  NormHeads(own.raw_heads.data(), raw_width, weights.k_norm.data, eps, tokens_, config_.kv_heads,
            size, keys, width, own.head_rstd.data());
  NormHeads(own.raw_heads.data() + config_.kv_heads * size, raw_width, weights.q_norm.data, eps,
            tokens_, config_.heads, size, keys + config_.kv_heads * size, width,
            own.head_rstd.data() + tokens_ * config_.kv_heads);
  return absl::OkStatus();
}

template <typename T>
absl::Status PlannedStep<T>::ForwardLayer(size_t layer, GradientSink& sink,
                                          StepObserver* observer) {
  LayerBuffers<T>& own = buffers_.layers[layer];
  const LayerWeightsOf<T>& weights = weights_.layers[layer];
  const auto index = static_cast<int64_t>(layer);
  const int64_t hidden = config_.hidden_size, heads = config_.heads, size = config_.head_dim;
  const auto eps = static_cast<float>(config_.rms_norm_eps);
  SH_RETURN_IF_ERROR(Project(weights.attention, own.normed.data(), hidden, own.mixed.data(), sink));
  if (config_.qk_norm) SH_RETURN_IF_ERROR(NormMixed(layer, sink));
  RotateMixed(own.mixed.data(), /*inverse=*/false);
  attention_.Forward(lengths_, config_.WindowOf(index), {own.mixed.data(), mixed_width()},
                     own.attended.data(), own.lse.data());
  if (observer != nullptr) {
    observer->OnAttentionOutput(
        index, {own.attended.data(), static_cast<size_t>(tokens_ * heads * size), kDType<T>});
  }
  SH_RETURN_IF_ERROR(
      Project(weights.output, own.attended.data(), heads * size, buffers_.branch.data(), sink));

  SH_RETURN_IF_ERROR(sink.AwaitWeights(weights.attention_norm.index));
  AddAndNorm(own.input.data(), buffers_.branch.data(), weights.attention_norm.data, eps, tokens_,
             hidden, own.middle.data(), own.normed_middle.data(), own.middle_rstd.data());
  const int64_t inner = config_.intermediate_size;
  SH_RETURN_IF_ERROR(
      Project(weights.gated, own.normed_middle.data(), hidden, own.gated.data(), sink));
  SwiGluRows(own.gated.data() + inner, own.gated.data(), 2 * inner, tokens_, inner,
             buffers_.wide.data());
  SH_RETURN_IF_ERROR(
      Project(weights.down, buffers_.wide.data(), inner, buffers_.branch.data(), sink));

  const bool is_last = layer + 1 == weights_.layers.size();
  const Weight<T>& norm = is_last ? weights_.final_norm : weights_.layers[layer + 1].input_norm;
  float* output = is_last ? buffers_.last.data() : buffers_.layers[layer + 1].input.data();
  T* normed = is_last ? buffers_.hidden.data() : buffers_.layers[layer + 1].normed.data();
  float* rstd = is_last ? buffers_.last_rstd.data() : buffers_.layers[layer + 1].input_rstd.data();
  SH_RETURN_IF_ERROR(sink.AwaitWeights(norm.index));
  AddAndNorm(own.middle.data(), buffers_.branch.data(), norm.data, eps, tokens_, hidden, output,
             normed, rstd);
  if (observer != nullptr) {
    observer->OnLayerOutput(index, {output, static_cast<size_t>(tokens_ * hidden), DType::kF32});
  }
  return absl::OkStatus();
}

template <typename T>
absl::Status PlannedStep<T>::Forward(const MicroBatch& batch, GradientSink& sink,
                                     StepObserver* observer) {
  LayerBuffers<T>& first = buffers_.layers[0];
  SH_RETURN_IF_ERROR(sink.AwaitWeights(weights_.embedding.index));
  GatherRows(weights_.embedding.data, batch.ids.data(), tokens_, config_.hidden_size,
             first.input.data());
  const Weight<T>& norm = weights_.layers[0].input_norm;
  SH_RETURN_IF_ERROR(sink.AwaitWeights(norm.index));
  AddAndNorm(first.input.data(), static_cast<const T*>(nullptr), norm.data,
             static_cast<float>(config_.rms_norm_eps), tokens_, config_.hidden_size, nullptr,
             first.normed.data(), first.input_rstd.data());
  for (size_t layer = 0; layer < weights_.layers.size(); ++layer) {
    SH_RETURN_IF_ERROR(ForwardLayer(layer, sink, observer));
  }
  return absl::OkStatus();
}

#define SH_INSTANTIATE(T)                                                                         \
  template absl::Status PlannedStep<T>::Await(const ProjectionGroup<T>&, GradientSink&);          \
  template absl::Status PlannedStep<T>::Project(const ProjectionGroup<T>&, const T*, int64_t, T*, \
                                                GradientSink&);                                   \
  template void PlannedStep<T>::RotateMixed(T*, bool);                                            \
  template absl::Status PlannedStep<T>::NormMixed(size_t, GradientSink&);                         \
  template absl::Status PlannedStep<T>::ForwardLayer(size_t, GradientSink&, StepObserver*);       \
  template absl::Status PlannedStep<T>::Forward(const MicroBatch&, GradientSink&, StepObserver*)
SH_INSTANTIATE(float);
SH_INSTANTIATE(uint16_t);
#undef SH_INSTANTIATE

}  // namespace stillhouse::planned

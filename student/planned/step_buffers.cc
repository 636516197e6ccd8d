#include "student/planned/step_buffers.h"

#include <algorithm>

#include "student/planned/block_product.h"
#include "student/planned/step_kernels.h"

namespace stillhouse::planned {
namespace {

template <typename V>
FlatBuffer<V> Matrix(int64_t rows, int64_t columns) {
  return FlatBuffer<V>(static_cast<size_t>(rows * columns));
}

}  // namespace

template <typename T>
LayerBuffers<T>::LayerBuffers(const ModelConfig& config, int64_t rows) {
  const int64_t hidden = config.hidden_size, size = config.head_dim;
  const int64_t heads = config.heads, kv_heads = config.kv_heads;
  input = Matrix<float>(rows, hidden);
  middle = Matrix<float>(rows, hidden);
  input_rstd = Matrix<float>(rows, 1);
  middle_rstd = Matrix<float>(rows, 1);
  normed = Matrix<T>(rows, hidden);
  normed_middle = Matrix<T>(rows, hidden);
  mixed = Matrix<T>(rows, (2 * kv_heads + heads) * size);
  if (config.qk_norm) {
    raw_heads = Matrix<T>(rows, (kv_heads + heads) * size);
    head_rstd = Matrix<float>(rows, kv_heads + heads);
  }
  attended = Matrix<T>(rows, heads * size);
  lse = Matrix<float>(rows, heads);
  gated = Matrix<T>(rows, 2 * config.intermediate_size);
}

template <typename T>
int64_t StepBuffers<T>::RowsFor(int64_t tokens) {
  return RoundUp(tokens, kPanel) + 2 * kPanel;
}

template <typename T>
StepBuffers<T>::StepBuffers(const ModelConfig& config, int64_t tokens) : tokens(tokens) {
  const int64_t rows = RowsFor(tokens), hidden_size = config.hidden_size;
  const int64_t query_width = config.heads * config.head_dim;
  const int64_t mixed_width = (2 * config.kv_heads + config.heads) * config.head_dim;
  for (int64_t i = 0; i < config.layers; ++i) layers.emplace_back(config, rows);
  last = Matrix<float>(rows, hidden_size);
  last_rstd = Matrix<float>(rows, 1);
  hidden = Matrix<T>(rows, hidden_size);
  picked = Matrix<T>(rows, hidden_size);
  picked_gradient = Matrix<T>(rows, hidden_size);
  branch = Matrix<T>(rows, hidden_size);
  wide = Matrix<T>(rows, config.intermediate_size);
  wide_second = Matrix<T>(rows, config.intermediate_size);
  mixed_gradient = Matrix<T>(rows, mixed_width);
  attended_gradient = Matrix<T>(rows, query_width);
  stream_gradient = Matrix<float>(rows, hidden_size);
  stream_gradient_rounded = Matrix<T>(rows, hidden_size);
  norm_parts = Matrix<float>(NormParts(rows), std::max(hidden_size, config.head_dim));
  positions = Matrix<int32_t>(rows, 1);
}

template struct LayerBuffers<float>;
template struct LayerBuffers<uint16_t>;
template struct StepBuffers<float>;
template struct StepBuffers<uint16_t>;

}  // namespace stillhouse::planned

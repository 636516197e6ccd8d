// StepWeights: where each parameter of a student lies, for a planned step. T is float, or uint16_t
// for bfloat16 bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/tensor_view.h"
#include "formats/model_config.h"
#include "sharding/flat_layout.h"

namespace stillhouse::planned {

// A parameter that the model lacks has no data.
template <typename T>
struct Weight {
  const T* data = nullptr;
  size_t index = 0;               // in the layout
  int64_t rows = 0, columns = 0;  // columns 1 where it has one dimension
  int64_t count() const { return rows * columns; }
};

// Projections of one input, whose outputs stand side by side in one matrix.
template <typename T>
struct ProjectionGroup {
  std::vector<Weight<T>> weights;  // [n_i, input]
  std::vector<Weight<T>> biases;   // [n_i]; no data where there is none
  int64_t outputs = 0;             // Σ n_i
  // The weights lie end to end, as one matrix [outputs, input], and none has a bias.
  bool contiguous = false;
};

template <typename T>
struct LayerWeightsOf {
  Weight<T> input_norm, attention_norm;
  Weight<T> q_norm, k_norm;
  ProjectionGroup<T> attention;  // v, k, q: the layout's order
  ProjectionGroup<T> output;     // o
  ProjectionGroup<T> gated;      // up, gate: the layout's order
  ProjectionGroup<T> down;
};

template <typename T>
struct StepWeights {
  // `weights` is laid out by StudentLayout(config). REQUIRES: its dtype is T's.
  StepWeights(const ModelConfig& config, const FlatLayout& layout, const TensorView& weights);

  std::vector<LayerWeightsOf<T>> layers;
  Weight<T> embedding, final_norm;
  Weight<T> head;  // the embedding, where they are tied
};

}  // namespace stillhouse::planned

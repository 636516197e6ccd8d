// StepBuffers: all memory of a planned step, made once for the most tokens of a micro-batch.
//
// T is float, or uint16_t for bfloat16 bits. H hidden size, I intermediate size, Q heads, K
// key/value heads, D head size. Every matrix has `tokens` rows and some to spare, which start as
// zero and stay finite: the matrix unit reads whole blocks.
#pragma once

#include <cstdint>
#include <vector>

#include "formats/model_config.h"
#include "sharding/flat_buffer.h"

namespace stillhouse::planned {

// What the forward pass of a layer leaves for its backward pass.
template <typename T>
struct LayerBuffers {
  LayerBuffers(const ModelConfig& config, int64_t rows);

  FlatBuffer<float> input, middle;            // [rows, H]: the residual stream before each half
  FlatBuffer<float> input_rstd, middle_rstd;  // [rows], of the norms
  FlatBuffer<T> normed, normed_middle;        // [rows, H]
  FlatBuffer<T> mixed;                        // [rows, (2K+Q)·D]: v, k and q, rotated
  FlatBuffer<T> raw_heads;      // [rows, (K+Q)·D]: k and q before their norm; or empty
  FlatBuffer<float> head_rstd;  // [rows, K+Q]: k's [rows, K], then q's; or empty
  FlatBuffer<T> attended;       // [rows, Q·D]
  FlatBuffer<float> lse;        // [rows, Q]
  FlatBuffer<T> gated;          // [rows, 2I]: up and gate
};

template <typename T>
struct StepBuffers {
  StepBuffers() = default;
  StepBuffers(const ModelConfig& config, int64_t tokens);

  int64_t tokens = 0;
  std::vector<LayerBuffers<T>> layers;
  FlatBuffer<float> last;         // [rows, H]: the residual stream after all layers
  FlatBuffer<float> last_rstd;    // [rows]
  FlatBuffer<T> hidden;           // [rows, H], after the final norm
  FlatBuffer<T> picked;           // [rows, H]: hidden states that have a loss
  FlatBuffer<T> picked_gradient;  // [rows, H]
  // Used by one layer after the other.
  FlatBuffer<T> branch;                   // [rows, H]: what a half adds; the gradient of its input
  FlatBuffer<T> wide, wide_second;        // [rows, I]
  FlatBuffer<T> mixed_gradient;           // [rows, (2K+Q)·D]
  FlatBuffer<T> attended_gradient;        // [rows, Q·D]
  FlatBuffer<float> stream_gradient;      // [rows, H]
  FlatBuffer<T> stream_gradient_rounded;  // [rows, H]
  FlatBuffer<float> norm_parts;           // [NormParts(rows), max(H, D)]
  FlatBuffer<int32_t> positions;          // [rows]
  FlatBuffer<T> teacher_hidden;           // made by the caller, which knows its width

  // Rows that a matrix of `tokens` rows has.
  static int64_t RowsFor(int64_t tokens);
};

}  // namespace stillhouse::planned

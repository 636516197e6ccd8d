// Rotary positions (Su et al. 2021): the angles of every RoPE kind, as `transformers` computes
// them.
//
// linear: Chen et al. 2023; dynamic ("NTK-aware", the base grows with the length); yarn: Peng et
// al. 2023; llama3: the scaling of Llama 3.1. All is fp32, operation by operation as
// `transformers`: at position 8,000 one unit in the last place of a frequency is already 5e-4 of an
// angle.
//
// These throw c10::Error.
#pragma once

#include <cstdint>
#include <vector>

#include "ATen/core/Tensor.h"
#include "formats/model_config.h"
#include "model/ops.h"

namespace stillhouse {

// A table, and for each token the row of it that holds its angles.
struct RotaryAngles {
  ops::RotaryTable table;
  at::Tensor row;  // [T] int32
};

// Angles of documents end to end, positions from 0 in each, rounded to `dtype`. Dynamic RoPE turns
// a document past max_positions by the base that its own whole length asks for, which is what one
// forward pass of `transformers` over that document alone does (DecoderBatch::whole_lengths).
// REQUIRES: whole_lengths as many as lengths.
RotaryAngles AnglesOf(const ModelConfig& config, const std::vector<int64_t>& lengths,
                      const std::vector<int64_t>& whole_lengths, at::ScalarType dtype);

// Angles of positions 0..positions-1 of a text of `length` tokens.
ops::RotaryTable MakeRotaryTable(const ModelConfig& config, int64_t positions, int64_t length,
                                 at::ScalarType dtype);

// Do the angles of a text of `tokens` depend on how long it is?
bool AnglesDependOnLength(const ModelConfig& config, int64_t tokens);

}  // namespace stillhouse

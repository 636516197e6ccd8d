// Ops: the kernels as differentiable functions of tensors, fp32 or bf16, on the CPU.
//
// These throw c10::Error, as ATen does; the callers in this folder turn it into Status.
#pragma once

#include <cstdint>

#include "ATen/core/Tensor.h"

namespace stillhouse::ops {

// x [T, H], weight [H] of the same dtype → [T, H].
at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps);

// Cosines and sines [rows, size/2] of rotary angles, fp32 (rotary.h makes them).
struct RotaryTable {
  at::Tensor cos, sin;
};
// x [T, heads, size], position [T] int32, each below the table's length → the same shape.
at::Tensor Rotate(const at::Tensor& x, const RotaryTable& table, const at::Tensor& position);

// gate, up [T, I] → silu(gate)·up.
at::Tensor SwiGlu(const at::Tensor& gate, const at::Tensor& up);

}  // namespace stillhouse::ops

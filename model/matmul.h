// Products of matrices and attention: the one place that knows what this CPU multiplies well.
//
// PyTorch multiplies bfloat16 through oneDNN only where the CPU has AVX-512; elsewhere its loop is
// an order of magnitude slower than float32. There the operands are widened to float32, which is
// exact, and the result is rounded to bfloat16 once, so a product differs only by the order of its
// sums. The choice is the CPU's alone and part of the producer class, which names its instruction
// sets.
//
// Threads: as PyTorch. All throw c10::Error; CallTorch turns it into a Status.
#pragma once

#include "ATen/core/Tensor.h"

namespace stillhouse::ops {

// Does PyTorch have bfloat16 products of its own for this CPU?
bool HasBf16Products();
// For tests: computes as a CPU would that has them, or has none; the numbers are right on any CPU,
// the speed is not. Nothing else may be computing.
void PretendBf16Products(bool has);

// Has this CPU a matrix unit for bfloat16 (Intel AMX), and does the kernel let this process use it?
// The first call asks.
bool HasMatrixUnit();

// x [T, K] times w [N, K] transposed, with gradients; plus `bias` [N] where it is defined, before
// the result is rounded.
at::Tensor Linear(const at::Tensor& x, const at::Tensor& w, const at::Tensor& bias = {});

// out = a b, for two-dimensional tensors of one dtype; no gradients.
void MatMulInto(at::Tensor& out, const at::Tensor& a, const at::Tensor& b);
// out += a b.
void AddMatMulInto(at::Tensor& out, const at::Tensor& a, const at::Tensor& b);

// Scaled dot-product attention, with gradients: q, k, v are [documents, heads, tokens, size].
at::Tensor Attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool causal);
// The same where `mask` [queries, keys] says which keys each query sees (bool, true: it does).
at::Tensor MaskedAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const at::Tensor& mask);

}  // namespace stillhouse::ops

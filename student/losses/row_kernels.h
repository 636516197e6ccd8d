// Row kernels: the loops over the vocabulary, for one row of logits, in plain memory.
//
// Pure functions; threads are the caller's. Vectorised by the compiler for several instruction
// sets, one of which the loader picks; no contraction into fused multiply-adds and a fixed order of
// sums, so that all of them give the same bits. Elementwise work is fp32, sums over a row are fp64.
#pragma once

#include <cstddef>
#include <cstdint>

namespace stillhouse {

// Copies a row to fp32 and returns its largest value. REQUIRES: n > 0.
float LoadRow(const float* row, size_t n, float* out);
float LoadRow(const uint16_t* row_bf16, size_t n, float* out);

// out[i] = exp((row[i] - shift) · scale); returns their sum. Exponents below -87.3 give 0. Error
// of one value: 2e-7 of it. REQUIRES: (row[i] - shift) · scale <= 0; `out` may be `row`.
double ExpRow(const float* row, size_t n, float shift, float scale, float* out);

void ScaleRow(const float* row, size_t n, float factor, float* out);      // out  = factor · row
void AddScaledRow(const float* row, size_t n, float factor, float* out);  // out += factor · row

// Σ weight[i] · (a[i] - b[i])
double WeightedDifference(const float* weight, const float* a, const float* b, size_t n);

void StoreRow(const float* row, size_t n, float* out);
void StoreRow(const float* row, size_t n, uint16_t* out_bf16);  // to nearest even

// Σ ½ (p log(p/m) + q log(q/m)), m = (p+q)/2, with p = p_exp · p_scale and q likewise. Every term
// is at least 0, and so is the sum.
double JensenShannonRow(const float* p_exp, float p_scale, const float* q_exp, float q_scale,
                        size_t n);

// The lowest index of the largest value. REQUIRES: n > 0.
size_t ArgMaxRow(const float* row, size_t n);

// out[i] += gradient[i], or = where `first`.
void AccumulateGradient(const uint16_t* gradient_bf16, size_t n, bool first, float* out);
void AccumulateGradient(const float* gradient, size_t n, bool first, float* out);

}  // namespace stillhouse

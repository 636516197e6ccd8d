// One layer of the decoder, with the attention itself left to the caller: over documents end to
// end, or over a cache of earlier keys and values. Throws c10::Error.
#pragma once

#include "ATen/core/Tensor.h"
#include "absl/functional/function_ref.h"
#include "model/decoder.h"
#include "model/ops.h"

namespace stillhouse {

// q [T, Q, D], k and v [T, K, D], rotated → [T, Q·D].
using AttendFunction =
    absl::FunctionRef<at::Tensor(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v)>;

// x [T, H] → [T, H]. `row` [T]: the rows of `table` that hold each token's angles.
at::Tensor RunLayer(const LayerWeights& layer, const ModelConfig& config,
                    const ops::RotaryTable& table, const at::Tensor& row, const at::Tensor& x,
                    AttendFunction attend);

// Causal attention of `documents` documents of one length L: q [documents·L, Q, D], k and v
// [documents·L, K, D] → [documents·L, Q·D]. Each token sees the last `window` tokens, itself
// included; all before it where `window` is 0.
at::Tensor AttendDocuments(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           int64_t documents, int64_t window);
// Attention of q [T, Q, D] to all of k and v [S, K, D], without a mask.
at::Tensor AttendAll(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v);

}  // namespace stillhouse

// The one sum that every reduction computes, so that every backend gives the same bits.
#pragma once

#include <cstddef>

#include "absl/types/span.h"
#include "common/tensor_view.h"

namespace stillhouse {

// out[i] = parts[0][i] + parts[1][i] + …, in fp32 and in that order. `dtype` (fp32 or bf16) is that
// of the parts; `out` may be one of them. Pure, of any thread.
void SumInRankOrder(absl::Span<const void* const> parts, DType dtype, size_t count, float* out);

}  // namespace stillhouse

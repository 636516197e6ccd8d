// The products of block_product.h on Intel's matrix unit (AMX). Call only where HasTiles().
#pragma once

#include <cstdint>

namespace stillhouse::planned::internal {

void MultiplyTiles(const uint16_t* a, int64_t a_stride, const uint16_t* packed,
                   int64_t panel_stride, int64_t m, int64_t n, int64_t k, bool add, float* c,
                   int64_t c_stride);

}  // namespace stillhouse::planned::internal

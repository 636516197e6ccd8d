// Bulk conversions between stored number formats and fp32. Plain loops, so that the compiler
// vectorises them; sources need not be aligned.
#pragma once

#include <cstdint>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace stillhouse {

// REQUIRES for each: `bytes` holds exactly out.size() values.
void DecodeF32(absl::string_view bytes, absl::Span<float> out);
void DecodeF64(absl::string_view bytes, absl::Span<float> out);  // rounded to nearest
void DecodeF16(absl::string_view bytes, absl::Span<float> out);
void DecodeBf16(absl::string_view bytes, absl::Span<float> out);

// IEEE half precision of an fp32 bit pattern's value, as a float: one value of DecodeF16.
float HalfToFloat(uint16_t bits);
// Rounded to nearest even; too large becomes infinity, NaN stays NaN.
uint16_t FloatToHalf(float value);

}  // namespace stillhouse

// Codecs: rows of a section to the payload of a part, and back. Pure functions, golden bytes in tests.
//
// Decoding never trusts its input: DataLoss on anything malformed, and no allocation larger than what
// the stated number of rows can need.
#pragma once

#include <string>

#include "storage/sections.h"

namespace stillhouse {

// Rows [begin, end) of the section. REQUIRES: begin < end <= rows.
std::string EncodeStats(const StatsRows& rows, uint32_t begin, uint32_t end);
std::string EncodeSampled(const SampledRows& rows, uint32_t begin, uint32_t end);
std::string EncodeHidden(const HiddenRows& rows, uint32_t begin, uint32_t end);

// Append the `row_count` rows of a payload to `rows`.
absl::Status DecodeStats(absl::string_view payload, uint32_t row_count, StatsRows* rows);
// REQUIRES: rows->draws is that of the spec. `vocabulary` bounds the ids.
absl::Status DecodeSampled(absl::string_view payload, uint32_t row_count, uint32_t vocabulary,
                           SampledRows* rows);
absl::Status DecodeHidden(absl::string_view payload, uint32_t row_count, HiddenRows* rows);

}  // namespace stillhouse

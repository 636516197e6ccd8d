// Rows of ids turned over: for each id of a part, the rows in which it stands, as a search engine
// keeps its postings. What a teacher says often in a document costs little there, without a table
// from elsewhere, and a row's order costs nothing.
//
// Pure functions. Decoding never trusts its input.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "storage/bit_io.h"
#include "storage/codec/range_coder.h"

namespace stillhouse {

// Row r has ids[offsets[r]..offsets[r+1]), ascending.
struct IdRows {
  std::vector<uint32_t> offsets = {0};
  std::vector<int32_t> ids;
  // How often ids[i] stands in the part: 0 once, 1 up to seven times, 2 more often.
  std::vector<uint8_t> often;
};
inline constexpr int kOftenClasses = 3;

struct EncodedIdLists {
  uint32_t distinct = 0;       // ids; the decoder is to be told
  std::vector<uint8_t> often;  // of every id, as in IdRows
};
// `offsets` has one more element than there are rows; ids lie at offsets[r] - offsets[0] on.
// REQUIRES: ids of a row ascend from 0 on and are below 2^31 - 1.
EncodedIdLists EncodeIdLists(absl::Span<const uint32_t> offsets, absl::Span<const int32_t> ids,
                             RangeEncoder* symbols, BitWriter* bits);

struct IdListsLimits {
  uint32_t rows = 0;
  uint32_t vocabulary = 0;
  uint64_t ids = 0;  // of all rows together
};
// `distinct` ids are read. DataLoss when what is read is no such lists, or more than the limits.
template <bool kPortable>
absl::Status DecodeIdLists(const IdListsLimits& limits, uint32_t distinct,
                           RangeDecoder<kPortable>* symbols, BitReader* bits, IdRows* rows);

}  // namespace stillhouse

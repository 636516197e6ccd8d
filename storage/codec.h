// Codecs: rows of a section to the payload of a part, and back. Pure functions, golden bytes in
// tests.
//
// A payload begins with one byte that names its codec, so that stored records outlive a change of
// codec; the grammar of each stands in docs/formats.md. Decoding never trusts its input: DataLoss
// on anything malformed, and no allocation larger than what the stated number of rows can need. A
// failed decode leaves `rows` as it was.
#pragma once

#include <string>
#include <variant>

#include "storage/sections.h"

namespace stillhouse {

// Ids are stored in records: never reuse one.
enum class CodecId : uint8_t {
  kStatsFixed = 1,  // fixed point, columns packed to the bits that the part needs
  // 2 was a first form of logits/sampled.
  kHiddenBf16 = 3,    // the bits as they are
  kSampledLists = 4,  // ids with the rows that hold them, then counts, in a range code that learns
  kTopTokens = 5,     // ids as in 4, then levels of log-probability
  kHiddenInt8 = 6,    // bytes, and a scale per 64 channels
};

// Which instructions decode: the result is the same.
enum class Instructions { kBest, kPortable };

// A static table that a codec needs (id frequencies, …): its number in the cache. None so far.
inline constexpr uint32_t kTableNone = 0;

// Decoded entropies, logsumexps and log-probabilities differ from the encoded ones by at most this,
// in nats, while their magnitude is below kStatsExactBelow (above it, by float's own rounding too).
inline constexpr double kStatsErrorMax = 0x1.0p-13;
inline constexpr double kStatsExactBelow = 2048;
// Largest magnitude that can be encoded.
inline constexpr double kStatsMagnitudeMax = 0x1.0p20;
// An upper bound of every vocabulary, for those who check payloads without knowing the teacher's.
inline constexpr uint32_t kVocabularyMax = 1u << 24;

// Rows [begin, end) of the section. REQUIRES: begin < end <= rows; stats finite and within
// kStatsMagnitudeMax; ids of sampled rows ascending, counts at least 1 with the sum `draws`.
std::string EncodeStats(const StatsRows& rows, uint32_t begin, uint32_t end);
std::string EncodeSampled(const SampledRows& rows, uint32_t begin, uint32_t end);
std::string EncodeHidden(const HiddenRows& rows, uint32_t begin, uint32_t end);

// Append the `row_count` rows of a payload to `rows`.
absl::Status DecodeStats(absl::string_view payload, uint32_t row_count, StatsRows* rows);
// REQUIRES: rows->draws is that of the spec. `vocabulary` bounds the ids.
absl::Status DecodeSampled(absl::string_view payload, uint32_t row_count, uint32_t vocabulary,
                           SampledRows* rows, Instructions instructions = Instructions::kBest);
// REQUIRES: rows->hidden_size is that of the spec.
absl::Status DecodeHidden(absl::string_view payload, uint32_t row_count, HiddenRows* rows);

// Hidden states in 8 bits (dtype int8): a value is off by at most 0.008 of the largest magnitude
// among its 64 channels, where that is at least 2^-118. REQUIRES: magnitudes are at most
// kHiddenInt8Max.
inline constexpr float kHiddenInt8Max = 0x1.0p120f;
std::string EncodeHiddenInt8(const HiddenRows& rows, uint32_t begin, uint32_t end);
absl::Status DecodeHiddenInt8(absl::string_view payload, uint32_t row_count, HiddenRows* rows,
                              Instructions instructions = Instructions::kBest);

// The rows of a section of any kind. Those of logits/topk and logits/topp have a codec in
// storage/codec/top_tokens.h.
using SectionRows = std::variant<StatsRows, SampledRows, TopTokenRows, HiddenRows>;
// None yet, of the kind that the spec asks for.
SectionRows NoRows(const SectionSpec& spec);
// As AppendRow of their kind. REQUIRES: both are of one kind.
void AppendRow(const SectionRows& from, size_t row, SectionRows* to);
size_t RowCount(const SectionRows& rows);
// REQUIRES: the rows are of the spec, and what the codec of its kind requires.
std::string EncodeSection(const SectionSpec& spec, const SectionRows& rows, uint32_t begin,
                          uint32_t end);
// Appends to rows of NoRows(spec).
absl::Status DecodeSection(const SectionSpec& spec, absl::string_view payload, uint32_t row_count,
                           uint32_t vocabulary, SectionRows* rows);

// The values of a payload in their canonical form, row by row, independent of codec and parts: what
// digests and comparisons look at (docs/formats.md). DataLoss when the payload is malformed, holds
// a number that is not finite or a row whose probabilities do not sum to about 1.
absl::StatusOr<std::string> CanonicalValues(const SectionSpec& spec, absl::string_view payload,
                                            uint32_t row_count);
// Of rows at hand. DataLoss likewise.
absl::StatusOr<std::string> CanonicalValues(const SectionRows& rows);

}  // namespace stillhouse

// Sections: what the teacher said about one document, as plain rows, and their names.
//
// Row t is the state after token t (see dataset/plan.h). Codecs in storage/codec/ turn rows into
// parts.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/digest.h"

namespace stillhouse {

enum class SectionKind : uint8_t { kStats = 1, kLogitsSampled = 2, kHiddenLast = 3 };

// Which section, with everything that changes its values.
struct SectionSpec {
  SectionKind kind = SectionKind::kStats;
  uint32_t draws = 0;        // kLogitsSampled: categorical draws per row, at T = 1
  uint32_t hidden_size = 0;  // kHiddenLast: values per row

  std::string Name() const;  // "stats", "logits/sampled", "hidden/last"
  std::string Canonical()
      const;  // "stats", "logits/sampled?draws=50", "hidden/last?hidden_size=576&dtype=bf16"
  // The rows of every part but the last: the most whose plain form is at most kPartBytesMax. Fixed
  // by the spec, so that a section's parts are known without asking.
  uint32_t RowsPerPart() const;
  friend bool operator==(const SectionSpec&, const SectionSpec&) = default;
};
absl::StatusOr<SectionSpec> ParseSectionSpec(absl::string_view canonical);

inline constexpr uint64_t kPartBytesMax = 4ull << 20;  // bounds one message and one record

// The identity of one section of one document: SHA-256 of (teacher, document key, canonical spec).
Digest SectionKey(const Digest& teacher, const Digest& document, const SectionSpec& spec);

// Per row, natural logarithms, over the real vocabulary at T = 1.
struct StatsRows {
  std::vector<float> entropy;
  std::vector<float> logsumexp;
  std::vector<int32_t> top1_id;
  std::vector<float> top1_logprob;
  std::vector<float> next_logprob;  // of the token that follows
  size_t rows() const { return entropy.size(); }
};

// Row r has ids[offsets[r]..offsets[r+1]), ascending, with counts >= 1 that sum to `draws`.
struct SampledRows {
  uint32_t draws = 0;
  std::vector<uint32_t> offsets = {0};
  std::vector<int32_t> ids;
  std::vector<uint16_t> counts;
  size_t rows() const { return offsets.size() - 1; }
};

// [rows, hidden_size] bf16 bits, after the final norm.
struct HiddenRows {
  uint32_t hidden_size = 0;
  std::vector<uint16_t> values;
  size_t rows() const { return hidden_size == 0 ? 0 : values.size() / hidden_size; }
};

}  // namespace stillhouse

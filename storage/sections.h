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

enum class SectionKind : uint8_t {
  kStats = 1,
  kLogitsSampled = 2,
  kHiddenLast = 3,   // after the final norm
  kLogitsTopK = 4,   // the k most likely ids
  kLogitsTopP = 5,   // the most likely ids that together have probability p
  kHiddenLayer = 6,  // the output of one decoder layer
};
enum class HiddenDtype : uint8_t { kBf16 = 0, kInt8 = 1 };

// Which section, with everything that changes its values. Fields that its kind does not use are as
// they are here.
struct SectionSpec {
  SectionKind kind = SectionKind::kStats;
  uint32_t draws = 0;         // kLogitsSampled: categorical draws per row, at T = 1
  uint32_t hidden_size = 0;   // kHidden…: values per row
  uint32_t k = 0;             // kLogitsTopK, kLogitsTopP: the most ids of a row
  uint32_t p_millionths = 0;  // kLogitsTopP: p in millionths, above 0 and below 1
  // kHiddenLayer: the decoder layer whose output this is, with its residual: 0 is the layer that
  // reads the embeddings, one less than the number of layers is what the final norm reads.
  uint32_t layer = 0;
  HiddenDtype dtype = HiddenDtype::kBf16;  // kHidden…

  // "stats", "logits/sampled", "logits/topk", "logits/topp", "hidden/last", "hidden/12"
  std::string Name() const;
  // The name and, behind a question mark, "draws=50", "k=64", "p=0.95&k_max=100" or
  // "hidden_size=576&dtype=bf16". REQUIRES: every field is one that ParseSectionSpec takes.
  std::string Canonical() const;
  // The rows of every part but the last: the most whose plain form is at most kPartBytesMax. Fixed
  // by the spec, so that a section's parts are known without asking.
  uint32_t RowsPerPart() const;
  friend bool operator==(const SectionSpec&, const SectionSpec&) = default;
};
// Canonical texts only: one text for one section, since they are hashed.
absl::StatusOr<SectionSpec> ParseSectionSpec(absl::string_view canonical);

inline constexpr uint32_t kDrawsMax = 65535;          // counts are 16 bits
inline constexpr uint32_t kTopMax = 65536;            // k
inline constexpr uint32_t kHiddenSizeMax = 1u << 20;  // so that a row fits a part
inline constexpr uint32_t kLayerMax = 9999;

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

// Row r has ids[offsets[r]..offsets[r+1]), at least one, ascending, with the levels of their
// log-probabilities (storage/codec/top_tokens.h).
struct TopTokenRows {
  std::vector<uint32_t> offsets = {0};
  std::vector<int32_t> ids;
  std::vector<uint8_t> levels;
  std::vector<uint8_t> residual_levels;  // per row: of all other ids together
  size_t rows() const { return offsets.size() - 1; }
};

// [rows, hidden_size] bf16 bits.
struct HiddenRows {
  uint32_t hidden_size = 0;
  std::vector<uint16_t> values;
  size_t rows() const { return hidden_size == 0 ? 0 : values.size() / hidden_size; }
};

// Row `row` of `from` behind those of `to`, which takes over its draws or hidden size. REQUIRES:
// row < from.rows(); from is not *to.
void AppendRow(const StatsRows& from, size_t row, StatsRows* to);
void AppendRow(const SampledRows& from, size_t row, SampledRows* to);
void AppendRow(const TopTokenRows& from, size_t row, TopTokenRows* to);
void AppendRow(const HiddenRows& from, size_t row, HiddenRows* to);

}  // namespace stillhouse

// What a teacher says about real text, row by row: the input of the codec benchmarks. Written by
// capture_rows, or made up where there is no teacher.
//
// The file is private to the benchmarks and to one machine: "SHBR", then numbers as they lie in
// memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "storage/sections.h"

namespace stillhouse {

inline constexpr uint32_t kBenchDraws = 50;
inline constexpr uint32_t kBenchTop = 64;

// Of one document. Of every row the kBenchTop most likely ids, ascending, with their natural
// log-probabilities, and that of all other ids together.
struct DocumentRows {
  StatsRows stats;
  SampledRows sampled;
  std::vector<int32_t> top_ids;
  std::vector<float> top_logprobs;
  std::vector<float> rest_logprobs;
  size_t rows() const { return rest_logprobs.size(); }
};

struct TeacherRows {
  std::string source;  // for people: the teacher and the text, or "synthetic"
  uint32_t vocabulary = 0;
  std::vector<DocumentRows> documents;
  uint64_t rows() const;
};

absl::Status WriteTeacherRows(const std::string& path, const TeacherRows& rows);
absl::StatusOr<TeacherRows> ReadTeacherRows(const std::string& path);

// Distributions over 49,152 ids that fall as a power of the rank, with an exponent that changes
// from row to row so that the entropy is about 4.5 bits and 50 draws give some 19 unique ids, as
// measured on SmolLM2 over technical text; ids that a document says often it says again.
TeacherRows SyntheticTeacherRows(uint32_t documents, uint32_t rows);

// The rows that the environment's STILLHOUSE_BENCH_ROWS names; synthetic ones without it.
const TeacherRows& BenchRows();

}  // namespace stillhouse

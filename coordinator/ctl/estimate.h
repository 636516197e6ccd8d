// What a job would cost, from the shapes of its models and plan alone: nothing is run.
//
// Every figure follows from the constants below, which `check` prints as assumptions. Sizes are
// meant to be right within a quarter, times within a factor of two on a machine like the assumed
// one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "dataset/plan.h"
#include "formats/model_config.h"
#include "recipe/recipe.h"
#include "storage/sections.h"

namespace stillhouse {

// Bytes a row takes in the cache, with its share of record headers and index.
inline constexpr double kStatsBytesPerRow = 8;
inline constexpr double kSampledBytesPerDraw = 0.5;  // 25 bytes for 50 draws (entropy 4.4 bits)
inline constexpr double kTopBytesPerId = 1.35;       // 84 bytes for 64 ids
inline constexpr double kRecordOverhead = 1.06;

// Sustained speed of one CPU core, in products of matrices and all around them.
inline constexpr double kGigaflopsPerCoreBf16 = 200;  // with bf16 instructions (AVX-512 BF16, AMX)
inline constexpr double kGigaflopsPerCoreFp32 = 40;   // also bf16 where they are absent

struct Machine {
  int cores = 1;
  bool bf16_instructions = false;
  uint64_t memory_bytes = 0;  // available now; 0: unknown

  double FlopsPerSecond(const std::string& dtype) const;
};
Machine ThisMachine();

struct PlanSize {
  uint64_t training_rows = 0;
  uint64_t held_out_rows = 0;
  uint64_t padded_tokens = 0;  // what the teacher's forward passes run over, padding included
  uint64_t largest_batch = 0;  // tokens of one forward pass
};
PlanSize MeasurePlan(const Plan& plan);

struct CaptureEstimate {
  uint64_t teacher_tokens = 0;  // document rows computed
  uint64_t cache_bytes = 0;     // training sections with records and index
  uint64_t held_out_bytes = 0;
  uint64_t artefact_bytes = 0;
  uint64_t memory_bytes = 0;  // of one teacher worker
  double seconds = 0;
  uint64_t TotalBytes() const { return cache_bytes + held_out_bytes + artefact_bytes; }
};
CaptureEstimate EstimateCapture(const Recipe& recipe, const ModelConfig& teacher,
                                const PlanSize& plan, const Machine& machine);

struct StudentEstimate {
  ModelConfig config;  // the student's own
  uint64_t parameters = 0;
  uint64_t rows = 0;  // over all steps
  double epochs = 0;
  uint64_t memory_bytes = 0;  // of all its ranks
  uint64_t export_bytes = 0;
  uint64_t checkpoint_bytes = 0;  // of all that are there at once
  double seconds = 0;
};
StudentEstimate EstimateStudent(const Recipe& recipe, const StudentRecipe& student,
                                const ModelConfig& teacher, const PlanSize& plan,
                                const Machine& machine);

// The most that a chunk takes in the cache: rows as plain numbers, records, index, its origins.
uint64_t ChunkBytesMax(const std::vector<SectionSpec>& sections, const Plan& plan, uint32_t chunk);
// ResourceExhausted, with both numbers, when what is captured cannot fit below cache.bytes_max:
// all of it where it is kept, what is needed at a time where it is kept until it is read.
absl::Status CheckCacheRoom(const Recipe& recipe, const ModelConfig& teacher, const Plan& plan,
                            const std::vector<SectionSpec>& sections,
                            const std::vector<SectionSpec>& held_out_sections);

// InvalidArgument for a student with more ranks than the plan has training documents.
absl::Status CheckRanks(const Recipe& recipe, const Plan& plan);

// InvalidArgument, naming the key, where the recipe asks of the teacher what it does not have:
// layers, positions.
absl::Status CheckAgainstTeacher(const Recipe& recipe, const ModelConfig& teacher);

}  // namespace stillhouse

// The object "job/<name>": what a job wants of the cache, so that digests, exports and sizes can be
// had from the cache alone. JSON:
//   {"format": 1, "held_out_sections": ["stats", …], "name": "handbook", "plan": "<64 hex>",
//    "sections": ["stats", "logits/sampled?draws=50"], "teacher": "<64 hex>"}
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/digest.h"
#include "storage/sections.h"

namespace stillhouse {

struct JobObject {
  std::string name;
  Digest plan;
  Digest teacher;
  std::vector<SectionSpec> sections;           // of training documents
  std::vector<SectionSpec> held_out_sections;  // of held-out documents
  friend bool operator==(const JobObject&, const JobObject&) = default;
};

// The same bytes for equal jobs.
std::string EncodeJobObject(const JobObject& job);
// DataLoss names what is wrong.
absl::StatusOr<JobObject> ParseJobObject(absl::string_view bytes);

}  // namespace stillhouse

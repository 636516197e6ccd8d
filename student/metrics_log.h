// MetricsLog: `<run folder>/metrics.jsonl`, one JSON object per step and per evaluation.
//
// For people and plots: appended without fsync. After a resume from step n, lines of later steps
// are dropped first, so that each step stands there once.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "student/losses/head_loss.h"
#include "worker/run_client.h"

namespace stillhouse {

struct StepMetrics {
  uint64_t step = 0;
  double loss = 0;            // the weighted sum
  std::vector<double> parts;  // one per term, without weight
  double learning_rate = 0;
  double gradient_norm = 0;  // before clipping
  uint64_t rows = 0, counted_rows = 0;
  double rows_per_s = 0;  // waiting left out
  double waited_s = 0;    // for this step's data
  bool skipped = false;   // loss or gradient is not finite: nothing has changed
};

class MetricsLog {
 public:
  static absl::StatusOr<MetricsLog> Open(const std::string& run_folder, uint64_t resumed_step,
                                         const std::vector<LossTerm>& terms);
  absl::Status Add(const StepMetrics& metrics);
  absl::Status Add(const Evaluation& evaluation);

 private:
  absl::Status Append(const std::string& line);
  std::string path_;
  std::vector<std::string> names_;  // of the terms
};

}  // namespace stillhouse

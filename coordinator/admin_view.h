// AdminView: jobs, runs and workers as people see them, from a live coordinator or from its
// journal.
//
// Owner: whoever asked. Plain values.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/digest.h"
#include "coordinator/run.h"
#include "coordinator/state.h"

namespace stillhouse {

struct JobView {
  std::string name;   // "job/handbook"
  std::string state;  // capturing, captured, failed, cancelled
  Digest plan;
  Digest teacher;
  uint32_t chunks = 0, chunks_durable = 0, chunks_leased = 0, chunks_poisoned = 0;
  uint64_t rows = 0;
  uint64_t rows_durable = 0;      // also of chunks that are not yet whole
  uint64_t rows_computed = 0;     // by a teacher for this job: what it was charged
  uint64_t parts_mismatched = 0;  // computed again with other values than stored
  double rows_per_s = 0;
  double seconds_left = 0;     // 0: unknown
  double capture_seconds = 0;  // first lease to last durable chunk
  std::string recipe_path;
  std::string problem;
  std::vector<std::string> sections;
  std::vector<std::string> held_out_sections;
};

struct RunView {
  std::string name;   // "run/handbook/half"
  std::string state;  // queued, loading, waiting, training, evaluating, exporting, finished,
                      // failed, cancelled
  RunProgress last;
  std::optional<RunEvaluation> best;   // lowest KL
  std::optional<RunEvaluation> final;  // the latest
  std::string folder;
  std::string exported_to;
  uint64_t teacher_rows_charged = 0;
  std::string checkpoint;
  std::string hash;
};

struct WorkerView {
  std::string name;
  std::string role;   // teacher, student
  std::string state;  // loading, ready, working, draining, left, lost, quarantined; a run's state
  std::string host;
  int64_t pid = 0;
  std::string holding;  // "job/handbook chunk 7", or the run
  absl::Duration last_heard;
  uint64_t rows_done = 0;
  std::string producer_class;
};

struct AdminView {
  uint64_t coordinator_incarnation = 0;
  std::vector<JobView> jobs;
  std::vector<RunView> runs;  // in recipe order, job by job
  std::vector<WorkerView> workers;
};

// `name`: empty for all, else a job (its runs and the workers come along) or a run, whose last word
// is enough where only one ends so. NotFound when unknown.
absl::StatusOr<AdminView> ViewState(const State& state, const std::string& name,
                                    absl::Duration now);

// The body of an answer to admin.Get, and back.
std::string SerializeAdminView(const AdminView& view);
absl::StatusOr<AdminView> ParseAdminView(absl::string_view body);

}  // namespace stillhouse

// RunClient: what a student trainer says to the coordinator, and hears.
//
// Event-driven, on one executor; retries under the same request id; callbacks run on the executor.
// A trainer's own thread waits with CallAndWait (common/blocking.h).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/digest.h"

namespace stillhouse {

class RpcClient;

struct RunSpec {
  std::string recipe_path;
  std::string recipe_text;
  std::string student;
  Digest plan;
  Digest teacher;
  uint64_t run_epoch = 0;  // fences older processes of this run
  std::string run_folder;
  std::string checkpoint;  // last committed folder name below <run_folder>/checkpoints, or ""
  std::string cache_address;
  std::vector<std::string> sections;  // canonical specs, training chunks
  std::vector<std::string> held_out_sections;
};

enum class ChunkAvailability { kPending, kDurable, kPoisoned, kNeedsTeacher, kExcluded, kLost };

struct WantItem {
  uint32_t chunk = 0;
  absl::Duration within;  // how soon the run will read it
};
struct WantAnswer {
  std::vector<ChunkAvailability> states;  // one per item
  absl::Duration retry;                   // ask again after this long
  bool cancelled = false;                 // leave
};

struct Evaluation {
  uint64_t step = 0, rows = 0;
  double perplexity = 0;
  double kl = 0, kl_se = 0;  // teacher || student, nats per row, T = 1; errors: NaN if unknown
  double jsd = 0, jsd_se = 0;
  double agreement = 0, agreement_se = 0;  // 0 to 1
  double teacher_perplexity = 0;
};

struct RunReport {
  std::string phase;  // loading, waiting, training, evaluating, exporting, finished, failed
  uint64_t step = 0, steps = 0;
  double loss = 0, rows_per_s = 0, waited_s = 0, seconds = 0;
  std::string message;
  bool has_evaluation = false;
  Evaluation evaluation;
  uint64_t parameters = 0;
  std::string exported_to;
};

class RunClient {
 public:
  virtual ~RunClient() = default;
  template <typename T>
  using Callback = absl::AnyInvocable<void(absl::StatusOr<T>)>;

  virtual void Start(Callback<RunSpec> done) = 0;  // first; FailedPrecondition: finished already
  virtual void Want(std::vector<WantItem> items, Callback<WantAnswer> done) = 0;
  virtual void Report(RunReport report, Callback<bool> done) = 0;  // true: the run was cancelled
  // Aborted when a newer process of this run has started.
  virtual void CommitCheckpoint(uint64_t step, std::string folder, Callback<bool> done) = 0;
};

// `rpc` must outlive the client. `incarnation` is random per process.
std::unique_ptr<RunClient> MakeRunClient(RpcClient& rpc, std::string run, uint64_t incarnation);

}  // namespace stillhouse

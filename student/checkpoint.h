// Checkpoints of a run, on disk.
//
//   <run folder>/checkpoints/step-<n>.<run epoch>.<nonce>/
//     rank-<r>-of-<n>.state   one per rank: its shard (student/shard_file.h)
//     MANIFEST.json           sizes and SHA-256 of the files, layout, where the run stood, the
//                             run's hash, and last "digest": SHA-256 of all of it but that line
//
// Durability: written in a folder that ends in ".tmp", each file fsynced, the manifest last, then
// renamed, then the parent fsynced. A checkpoint counts once the coordinator has journaled its
// name: one that was renamed but never committed is a leftover, removed later. Every rank writes
// its own shard and reads what it needs of whatever number of them; what is said to be done by the
// ranks together is called by all of them. Owner: the processes of one start of a run (older ones
// are fenced by the coordinator). Not thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "common/digest.h"
#include "student/data_cursor.h"
#include "student/rank_group.h"
#include "student/stepper.h"
#include "student/student_state.h"

namespace stillhouse {

// Where a run stands, besides its buffers.
struct RunProgress {
  uint64_t step = 0;  // updates done
  DataPosition data;  // the next document
  uint64_t seed = 0;
  Digest run_hash;
  std::vector<int64_t> teacher_layers;  // that the student started from
  double seconds = 0;                   // of work, over all starts
  double waited_s = 0;                  // of them, for the teacher
  // Early stopping: the best value seen, when it was, and how many evaluations since did no better.
  double best = 0;
  uint64_t best_step = 0;
  uint64_t evaluations = 0, evaluations_without_gain = 0;
  SkippedSteps skipped;

  void NoteEvaluation(double value);  // of this step; lower is better
  friend bool operator==(const RunProgress&, const RunProgress&) = default;
};

// What a checkpoint must fit, so that a run can go on from it.
struct CheckpointRules {
  Digest run_hash;
  uint64_t seed = 0;
  std::vector<int64_t> teacher_layers;
  uint64_t steps = 0;            // of the whole run
  uint64_t step_rows = 0;        // at most, of one step
  uint64_t epoch_documents = 0;  // of the plan
  uint64_t epoch_rows = 0;
};

class CheckpointStore {
 public:
  // What a test may make fail: called with "folder", "shard", "manifest", "rename", "sync" before
  // the step of that name; an error stops the writing there and then, as a crash would.
  using Fault = absl::AnyInvocable<absl::Status(absl::string_view step)>;

  explicit CheckpointStore(std::string run_folder, Fault fault = nullptr);

  // Writes one, by the ranks together; durable when it returns its name. ResourceExhausted when a
  // disk is full: the unfinished folder is then removed.
  absl::StatusOr<std::string> Write(const RunProgress& progress, const StudentState& state,
                                    uint64_t run_epoch, RankGroup& group);
  // Reads this rank's part of one back into `state`, bit for bit, whatever the number of ranks that
  // wrote it, and makes its part of the weights. NotFound; DataLoss, naming the file, for anything
  // that is not as it was written, or could not have been; FailedPrecondition for another run's, or
  // another layout. `state` is as it was unless it returns OK.
  absl::StatusOr<RunProgress> Read(const std::string& name, const CheckpointRules& rules,
                                   StudentState* state) const;
  // By the ranks together: reads `committed`, as rank 0 names it, or, whatever is wrong with it on
  // any rank, the newest of no later step that all can read: the way from there is the same, only
  // longer. DataLoss, saying what to do, when there is none; `state` is then of no use.
  struct Found {
    std::string name;
    RunProgress progress;
  };
  absl::StatusOr<Found> ReadNewest(const std::string& committed, const CheckpointRules& rules,
                                   StudentState* state, RankGroup& group) const;
  // Whether there is a folder for checkpoints. Who removes it wants the run to begin anew.
  bool FolderExists() const;
  const std::string& folder() const { return folder_; }
  // Complete folders, highest step first, then latest epoch first.
  absl::StatusOr<std::vector<std::string>> List() const;
  // Removes unfinished folders, and all but the newest `keep` of the others; never `committed`.
  absl::Status Prune(const std::string& committed, size_t keep);

 private:
  absl::Status At(absl::string_view step);
  absl::StatusOr<std::string> MakeFolder(const RunProgress& progress, uint64_t run_epoch);
  absl::StatusOr<std::string> WriteShard(const std::string& name, const StudentState& state,
                                         int ranks);
  absl::Status Complete(const std::string& name, const RunProgress& progress,
                        const FlatLayout& layout, const std::vector<std::string>& shards);
  std::vector<std::string> Candidates(const std::string& committed) const;

  const std::string folder_;  // <run folder>/checkpoints
  Fault fault_;
};

}  // namespace stillhouse

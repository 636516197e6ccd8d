#include <map>
#include <string>
#include <utility>
#include <vector>

#include "common/clock.h"
#include "common/mutex.h"
#include "common/status.h"
#include "sharding/collective.h"
#include "sharding/communicator.h"
#include "sharding/rank_sum.h"

namespace stillhouse {
namespace {

// Copies `range` of `from` to `place` of `to`, in elements.
void CopyRange(const TensorView& from, FlatRange range, const TensorView& to, size_t place) {
  const size_t width = DTypeSize(to.dtype);
  char* target = static_cast<char*>(to.data) + place * width;
  const char* source = static_cast<const char*>(from.data) + range.begin * width;
  if (range.size() == 0 || target == source) return;
  std::memmove(target, source, range.size() * width);
}

// The sum over all ranks of `range` of their inputs.
void SumRange(const std::vector<Collective>& all, FlatRange range, float* out) {
  std::vector<const void*> parts;
  for (const Collective& each : all) {
    const size_t offset = range.begin * DTypeSize(each.input.dtype);
    parts.push_back(static_cast<const char*>(each.input.data) + offset);
  }
  SumInRankOrder(parts, all[0].input.dtype, range.size(), out);
}

// Runs rank `rank`'s part of a collective to which all have come. Ranks write disjoint places.
void RunPart(const std::vector<Collective>& all, int rank) {
  const Collective& mine = all[rank];
  const int ranks = static_cast<int>(all.size());
  switch (mine.operation) {
    case Operation::kReduceScatter:
      SumRange(all, mine.sends[rank], static_cast<float*>(mine.output.data));
      return;
    case Operation::kAllReduce: {
      const FlatRange part = AllReducePart(mine.input.count, rank, ranks);
      if (part.size() == 0) return;
      SumRange(all, part, static_cast<float*>(mine.output.data) + part.begin);
      for (const Collective& each : all) CopyRange(mine.output, part, each.output, part.begin);
      return;
    }
    case Operation::kAllGather:
      for (int r = 0; r < ranks; ++r) {
        CopyRange(all[r].input, {0, mine.sends[r].size()}, mine.output, mine.sends[r].begin);
      }
      return;
    case Operation::kBroadcast:
      CopyRange(all[mine.root].input, {0, mine.input.count}, mine.output, 0);
      return;
    case Operation::kAllToAll:
      for (int r = 0; r < ranks; ++r) {
        CopyRange(all[r].input, all[r].sends[rank], mine.output, mine.receives[r].begin);
      }
      return;
    case Operation::kBarrier:
      return;
  }
}

// Where the ranks of one process meet. Shared by all of them; lives until the last is gone.
class Meeting {
 public:
  Meeting(int ranks, absl::Duration deadline) : ranks_(ranks), deadline_(deadline) {}

  int ranks() const { return ranks_; }

  absl::Status Arrive(uint64_t sequence, int rank, Collective collective) {
    MutexLock lock(mutex_);
    SH_RETURN_IF_ERROR(dead_);
    Round& round = rounds_[sequence];
    if (round.collectives.empty()) {
      round.collectives.resize(ranks_);
      round.here.resize(ranks_);
    }
    for (int other = 0; other < ranks_; ++other) {
      if (!round.here[other]) continue;
      absl::Status same = CheckAgreement(AgreementOf(collective, ranks_, other), other,
                                         AgreementOf(round.collectives[other], ranks_, rank));
      if (!same.ok()) {
        Kill(std::move(same));
        return dead_;
      }
    }
    round.here[rank] = true;
    round.collectives[rank] = std::move(collective);
    ++round.arrived;
    changed_.NotifyAll();
    return absl::OkStatus();
  }

  // Where a rank stands in a collective that it started.
  enum class Stage { kStarted, kRan, kDone };

  // Moves `stage` on; with a `deadline`, waits for the others that long.
  absl::Status Advance(uint64_t sequence, int rank, absl::Duration deadline, Stage& stage) {
    const absl::Duration until = SystemClock().Now() + deadline;
    if (stage == Stage::kStarted) {
      const std::vector<Collective>* all = nullptr;
      {
        MutexLock lock(mutex_);
        SH_RETURN_IF_ERROR(dead_);
        Round& round = rounds_[sequence];
        SH_ASSIGN_OR_RETURN(const bool here,
                            Await(until, deadline, [&] { return round.arrived == ranks_; }));
        if (!here) return absl::OkStatus();
        all = &round.collectives;  // no rank changes it once all have come
      }
      RunPart(*all, rank);
      stage = Stage::kRan;
      MutexLock lock(mutex_);
      ++rounds_[sequence].finished;
      changed_.NotifyAll();
    }
    if (stage == Stage::kDone) return absl::OkStatus();
    MutexLock lock(mutex_);
    SH_RETURN_IF_ERROR(dead_);
    Round& round = rounds_[sequence];
    SH_ASSIGN_OR_RETURN(const bool finished,
                        Await(until, deadline, [&] { return round.finished == ranks_; }));
    if (!finished) return absl::OkStatus();
    stage = Stage::kDone;
    if (++round.left == ranks_) rounds_.erase(sequence);
    return absl::OkStatus();
  }

  absl::Duration deadline() const { return deadline_; }

  void Abort() {
    MutexLock lock(mutex_);
    Kill(absl::AbortedError("collective: a rank gave up"));
  }

 private:
  struct Round {
    std::vector<Collective> collectives;
    std::vector<bool> here;
    int arrived = 0, finished = 0, left = 0;
  };

  void Kill(absl::Status why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (dead_.ok()) dead_ = std::move(why);
    changed_.NotifyAll();
  }

  // Whether `condition` came to hold by `until`. Without a deadline, it is only looked at.
  template <typename Condition>
  absl::StatusOr<bool> Await(absl::Duration until, absl::Duration deadline, Condition condition)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    while (dead_.ok() && !condition()) {
      if (deadline == absl::ZeroDuration()) return false;
      const absl::Duration left = until - SystemClock().Now();
      if (left <= absl::ZeroDuration()) {
        Kill(absl::DeadlineExceededError(absl::StrCat("collective: a rank did not come within ",
                                                      absl::FormatDuration(deadline))));
        break;
      }
      changed_.WaitFor(mutex_, left);
    }
    SH_RETURN_IF_ERROR(dead_);
    return true;
  }

  const int ranks_;
  const absl::Duration deadline_;
  Mutex mutex_;
  CondVar changed_;
  absl::Status dead_ ABSL_GUARDED_BY(mutex_);
  std::map<uint64_t, Round> rounds_ ABSL_GUARDED_BY(mutex_);
};

class ThreadPending final : public PendingCollective {
 public:
  ThreadPending(std::shared_ptr<Meeting> meeting, uint64_t sequence, int rank)
      : meeting_(std::move(meeting)), sequence_(sequence), rank_(rank) {}
  ~ThreadPending() override {
    if (!waited_) meeting_->Abort();
  }
  absl::StatusOr<bool> Poll() override {
    SH_RETURN_IF_ERROR(meeting_->Advance(sequence_, rank_, absl::ZeroDuration(), stage_));
    return stage_ == Meeting::Stage::kDone;
  }
  absl::Status Wait() override {
    SH_CHECK(!waited_);
    waited_ = true;
    return meeting_->Advance(sequence_, rank_, meeting_->deadline(), stage_);
  }

 private:
  std::shared_ptr<Meeting> meeting_;
  const uint64_t sequence_;
  const int rank_;
  Meeting::Stage stage_ = Meeting::Stage::kStarted;
  bool waited_ = false;
};

class ThreadCommunicator final : public CheckedCommunicator {
 public:
  ThreadCommunicator(std::shared_ptr<Meeting> meeting, int rank)
      : meeting_(std::move(meeting)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return meeting_->ranks(); }
  void Abort() override { meeting_->Abort(); }

 protected:
  Pending Begin(Collective collective) override {
    const uint64_t sequence = next_++;
    SH_RETURN_IF_ERROR(meeting_->Arrive(sequence, rank_, std::move(collective)));
    return std::unique_ptr<PendingCollective>(
        std::make_unique<ThreadPending>(meeting_, sequence, rank_));
  }

 private:
  std::shared_ptr<Meeting> meeting_;
  const int rank_;
  uint64_t next_ = 0;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> MakeThreadCommunicators(int ranks,
                                                                   absl::Duration deadline) {
  SH_CHECK(ranks >= 1);
  auto meeting = std::make_shared<Meeting>(ranks, deadline);
  std::vector<std::unique_ptr<Communicator>> communicators;
  for (int rank = 0; rank < ranks; ++rank) {
    communicators.push_back(std::make_unique<ThreadCommunicator>(meeting, rank));
  }
  return communicators;
}

}  // namespace stillhouse

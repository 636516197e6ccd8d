#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "common/clock.h"
#include "common/mutex.h"
#include "common/status.h"
#include "sharding/communicator.h"

namespace stillhouse {
namespace {

enum class Operation { kReduceScatter, kAllGather, kAllReduce, kBroadcast };

// What one rank brought to a collective.
struct Contribution {
  Operation operation = Operation::kAllReduce;
  TensorView input, output;
  std::vector<FlatRange> shards;
  int root = 0;
  bool here = false;
};

float Element(const TensorView& view, size_t index) {
  if (view.dtype == DType::kBF16) {
    return Bf16ToFloat(static_cast<const uint16_t*>(view.data)[index]);
  }
  return static_cast<const float*>(view.data)[index];
}

// Runs rank `rank`'s part of a collective to which all have come. Ranks write disjoint places.
void RunPart(const std::vector<Contribution>& all, int rank) {
  const Contribution& mine = all[rank];
  const int ranks = static_cast<int>(all.size());
  switch (mine.operation) {
    case Operation::kReduceScatter: {
      auto* out = static_cast<float*>(mine.output.data);
      const FlatRange shard = mine.shards[rank];
      for (size_t i = shard.begin; i < shard.end; ++i) {
        float sum = Element(all[0].input, i);
        for (int r = 1; r < ranks; ++r) sum += Element(all[r].input, i);
        out[i - shard.begin] = sum;
      }
      return;
    }
    case Operation::kAllReduce: {
      const size_t begin = mine.input.count * rank / ranks;
      const size_t end = mine.input.count * (rank + 1) / ranks;
      for (size_t i = begin; i < end; ++i) {
        float sum = Element(all[0].input, i);
        for (int r = 1; r < ranks; ++r) sum += Element(all[r].input, i);
        for (const Contribution& each : all) static_cast<float*>(each.output.data)[i] = sum;
      }
      return;
    }
    case Operation::kAllGather:
      for (int r = 0; r < ranks; ++r) {
        const size_t width = DTypeSize(mine.output.dtype);
        char* place = static_cast<char*>(mine.output.data) + mine.shards[r].begin * width;
        if (place == all[r].input.data) continue;  // already in place
        std::memmove(place, all[r].input.data, mine.shards[r].size() * width);
      }
      return;
    case Operation::kBroadcast:
      if (rank != mine.root) {
        std::memcpy(mine.output.data, all[mine.root].input.data, mine.output.size_bytes());
      }
      return;
  }
}

// Where the ranks of one process meet. Shared by all of them; lives until the last is gone.
class Meeting {
 public:
  Meeting(int ranks, absl::Duration deadline) : ranks_(ranks), deadline_(deadline) {}

  int ranks() const { return ranks_; }

  absl::Status Arrive(uint64_t sequence, int rank, Contribution contribution) {
    MutexLock lock(mutex_);
    SH_RETURN_IF_ERROR(dead_);
    Round& round = rounds_[sequence];
    if (round.contributions.empty()) round.contributions.resize(ranks_);
    const Contribution* first = nullptr;
    for (const Contribution& other : round.contributions) {
      if (other.here) first = &other;
    }
    if (first != nullptr &&
        (first->operation != contribution.operation ||
         first->input.dtype != contribution.input.dtype || first->root != contribution.root)) {
      Kill(absl::AbortedError("collective: the ranks started different operations"));
      return dead_;
    }
    contribution.here = true;
    round.contributions[rank] = std::move(contribution);
    ++round.arrived;
    changed_.NotifyAll();
    return absl::OkStatus();
  }

  absl::Status Finish(uint64_t sequence, int rank) {
    const std::vector<Contribution>* all = nullptr;
    {
      MutexLock lock(mutex_);
      Round& round = rounds_[sequence];
      SH_RETURN_IF_ERROR(Await([&] { return round.arrived == ranks_; }));
      all = &round.contributions;  // no rank changes it once all have come
    }
    RunPart(*all, rank);
    MutexLock lock(mutex_);
    Round& round = rounds_[sequence];
    ++round.finished;
    changed_.NotifyAll();
    SH_RETURN_IF_ERROR(Await([&] { return round.finished == ranks_; }));
    if (++round.left == ranks_) rounds_.erase(sequence);
    return absl::OkStatus();
  }

  void Abort() {
    MutexLock lock(mutex_);
    Kill(absl::AbortedError("collective: a rank gave up"));
  }

 private:
  struct Round {
    std::vector<Contribution> contributions;
    int arrived = 0, finished = 0, left = 0;
  };

  void Kill(absl::Status why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (dead_.ok()) dead_ = std::move(why);
    changed_.NotifyAll();
  }

  template <typename Condition>
  absl::Status Await(Condition condition) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const absl::Duration until = SystemClock().Now() + deadline_;
    while (dead_.ok() && !condition()) {
      const absl::Duration left = until - SystemClock().Now();
      if (left <= absl::ZeroDuration()) {
        Kill(absl::DeadlineExceededError(absl::StrCat("collective: a rank did not come within ",
                                                      absl::FormatDuration(deadline_))));
        break;
      }
      changed_.WaitFor(mutex_, left);
    }
    return dead_;
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
  absl::Status Wait() override {
    SH_CHECK(!waited_);
    waited_ = true;
    return meeting_->Finish(sequence_, rank_);
  }

 private:
  std::shared_ptr<Meeting> meeting_;
  const uint64_t sequence_;
  const int rank_;
  bool waited_ = false;
};

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(std::shared_ptr<Meeting> meeting, int rank)
      : meeting_(std::move(meeting)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return meeting_->ranks(); }

  Pending ReduceScatter(const TensorView& input, absl::Span<const FlatRange> shards,
                        const TensorView& output) override {
    SH_CHECK(output.dtype == DType::kF32 && output.count == shards[rank_].size());
    SH_CHECK(input.dtype == DType::kF32 || input.dtype == DType::kBF16);
    SH_CHECK(input.count == shards.back().end);
    return Begin({Operation::kReduceScatter, input, output, {shards.begin(), shards.end()}});
  }
  Pending AllGather(const TensorView& input, absl::Span<const FlatRange> shards,
                    const TensorView& output) override {
    SH_CHECK(input.dtype == output.dtype && input.count == shards[rank_].size());
    SH_CHECK(output.count == shards.back().end);
    return Begin({Operation::kAllGather, input, output, {shards.begin(), shards.end()}});
  }
  Pending AllReduceSum(const TensorView& in_out) override {
    SH_CHECK(in_out.dtype == DType::kF32);
    return Begin({Operation::kAllReduce, in_out, in_out, {}});
  }
  Pending Broadcast(const TensorView& in_out, int root) override {
    SH_CHECK(0 <= root && root < size());
    return Begin({Operation::kBroadcast, in_out, in_out, {}, root});
  }
  void Abort() override { meeting_->Abort(); }

 private:
  Pending Begin(Contribution contribution) {
    SH_CHECK(static_cast<int>(contribution.shards.size()) == size() || contribution.shards.empty());
    const uint64_t sequence = next_++;
    SH_RETURN_IF_ERROR(meeting_->Arrive(sequence, rank_, std::move(contribution)));
    return std::unique_ptr<PendingCollective>(
        std::make_unique<ThreadPending>(meeting_, sequence, rank_));
  }

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

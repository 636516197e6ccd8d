// Zero2: one optimizer step over ranks that each keep a part of gradients, masters and moments
// (ZeRO stage 2; Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter
// models", SC 2020).
//
//   BeginStep ─► BeginMicroBatch ─► Begin/Ready of each parameter ─► EndMicroBatch ─┐
//                     ▲                                                             │ as often as the
//                     └─────────────────────────────────────────────────────────────┤ rank that has
//                     └── AddNothing, of a rank with fewer micro-batches ───────────┘ most of them
//   ─► Update: norm over all ranks, clipping, AdamW on the shard, all-gather of the weights begun
//   ─► AwaitWeights, before they are read
//
// Owner: the trainer; the buffers are the caller's and must outlive it. Threads: one at a time,
// that of the communicator; AdamW and sums spread over those of the RangeRunner. Ordering: buckets
// are reduced in the plan's order, each as soon as its last gradient and the buckets before it are
// complete; every rank starts the same collectives in the same order whatever the order of its
// gradients. Determinism: sums over ranks are in fp32 in rank order, the norm in fp64 in rank
// order; the same ranks give the same bits. Memory: a bucket's gradients lie in a buffer that is
// used again once they are summed; with one rank they are made in the shard itself and nothing is
// sent. Errors: those of the communicator, which is dead then; the bucket buffers are kept for
// ever, as must be the caller's buffers.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/tensor_view.h"
#include "sharding/adamw.h"
#include "sharding/bucket_plan.h"
#include "sharding/communicator.h"
#include "sharding/flat_buffer.h"
#include "sharding/gradient_sink.h"

namespace stillhouse {

struct Zero2Options {
  // What gradients are on their way between ranks; sums are fp32 in either case.
  DType wire = DType::kF32;
  // Reductions under way before another bucket has to wait: enough to hide the latency of one.
  size_t reductions_max = 2;
};

// This rank's part of the state: fp32, plan.ShardSize(rank) elements each, on the CPU.
struct ShardBuffers {
  absl::Span<float> masters, first, second, gradients;
  // What the forward pass reads: the whole flat buffer, bf16 or fp32. With one rank and no frozen
  // parameter, fp32 weights may be the masters themselves.
  TensorView weights;
};

struct UpdateOptions {
  AdamWOptions adamw;
  uint64_t update = 1;  // the number of this update, without those skipped; for bias correction
  double learning_rate = 0;
  double clip = 0;  // of the global norm; 0: none
};

struct UpdateOutcome {
  double gradient_norm = 0;  // over all ranks, before clipping
  bool skipped = false;  // a gradient or a value of some rank is not finite: nothing has changed
};

class Zero2 final : public GradientSink {
 public:
  // `plan` is for the communicator's size. All references must outlive it.
  Zero2(const BucketPlan& plan, Communicator& communicator, const ShardBuffers& buffers,
        const Zero2Options& options = {});
  ~Zero2() override;
  Zero2(const Zero2&) = delete;
  Zero2& operator=(const Zero2&) = delete;

  void BeginStep();
  void BeginMicroBatch();
  absl::StatusOr<GradientPlace> Begin(size_t parameter) override;
  absl::Status Ready(size_t parameter) override;
  // What was not begun counts as zero. REQUIRES: what was begun is ready.
  absl::Status EndMicroBatch();
  // A micro-batch that this rank has no documents for.
  absl::Status AddNothing();

  // Adds `values` over the ranks (losses; in fp64, in rank order), and updates the shard unless the
  // gradient or one of them is not finite on any rank.
  absl::StatusOr<UpdateOutcome> Update(const UpdateOptions& options, absl::Span<double> values,
                                       RangeRunner run);
  // After the masters were set: rounds this rank's into `weights`, and begins to gather the
  // others'.
  absl::Status PublishWeights(RangeRunner run);
  absl::Status AwaitWeights(size_t parameter) override;
  absl::Status AwaitAllWeights();

  // Whether the communicator has failed.
  bool dead() const { return dead_; }

  // In bytes, the largest so far for the buckets.
  struct Memory {
    size_t weights = 0;         // 2Ψ in bf16
    size_t gradients = 0;       // 4Ψ/N
    size_t optimizer = 0;       // masters and moments: 12Ψ/N
    size_t bucket_buffers = 0;  // gradients before and sums after their reduction
    size_t total() const { return weights + gradients + optimizer + bucket_buffers; }
    std::string Describe() const;  // for logs
  };
  Memory memory() const;

 private:
  // Room for the gradients of one bucket, and for what comes back of them.
  struct Slot {
    FlatBuffer<float> gradients, sums;
  };
  struct BucketState {
    std::shared_ptr<Slot> slot;  // null while nothing of the bucket was begun
    size_t missing = 0;          // parameters not ready
  };
  struct Reduction {
    size_t bucket = 0;
    bool add = false;  // to what is in the shard: of a later micro-batch
    std::shared_ptr<Slot> slot;
    std::unique_ptr<PendingCollective> pending;
  };
  struct Gather {
    size_t bucket = 0;
    std::unique_ptr<PendingCollective> pending;
  };
  enum class Progress : uint8_t { kUntouched, kBegun, kReady };

  bool alone() const { return communicator_.size() == 1; }
  FlatRange Part(size_t bucket) const { return plan_.buckets()[bucket].shards[rank_]; }
  absl::Span<float> PartOf(absl::Span<float> shard, size_t bucket) const;
  TensorView WeightsOfPart(size_t bucket) const;
  absl::StatusOr<std::shared_ptr<Slot>> TakeSlot(const Bucket& bucket);
  absl::Status StartCompleteBuckets();
  absl::Status StartReduction(size_t bucket);
  absl::Status FinishReductions(size_t left);  // until so many are under way
  absl::Status FinishOldestReduction();
  absl::Status Poll();
  absl::Status BeginGather(size_t bucket);
  absl::Status CopyToWeights(size_t bucket, RangeRunner run);
  absl::Status Died(absl::Status why);  // notes an error of the communicator, and passes it on

  const BucketPlan& plan_;
  Communicator& communicator_;
  const ShardBuffers buffers_;
  const Zero2Options options_;
  const int rank_;
  std::unique_ptr<AdamWBackend> adamw_;

  // Of the step and the micro-batch at hand.
  size_t micro_batches_ = 0;  // ended
  bool in_micro_batch_ = false;
  std::vector<Progress> progress_;  // by parameter
  std::vector<BucketState> states_;
  size_t next_bucket_ = 0;  // to be reduced

  std::deque<Reduction> reductions_;  // oldest first
  std::deque<Gather> gathers_;        // oldest first: the last bucket, which is used first
  std::vector<std::shared_ptr<Slot>> free_;
  size_t slot_bytes_ = 0, slot_bytes_max_ = 0;
  bool dead_ = false;
};

}  // namespace stillhouse

#include "sharding/zero2.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "common/status.h"
#include "sharding/keep_forever.h"
#include "sharding/rank_values.h"

namespace stillhouse {
namespace {

size_t BytesOf(const FlatBuffer<float>& buffer) { return buffer.size() * sizeof(float); }

// fp32 to bf16 in the front half of the same memory. Ascending: what is written was read before.
void RoundInPlace(float* values, size_t count) {
  constexpr size_t kBlock = 32;
  static_assert(kFlatAlignment % kBlock == 0);
  char* const memory = reinterpret_cast<char*>(values);
  for (size_t i = 0; i < count; i += kBlock) {
    float wide[kBlock];
    uint16_t narrow[kBlock];
    std::memcpy(wide, memory + i * sizeof(float), sizeof(wide));
    for (size_t j = 0; j < kBlock; ++j) narrow[j] = RoundToBf16(wide[j]);
    std::memcpy(memory + i * sizeof(uint16_t), narrow, sizeof(narrow));
  }
}

}  // namespace

Zero2::Zero2(const BucketPlan& plan, Communicator& communicator, const ShardBuffers& buffers,
             const Zero2Options& options)
    : plan_(plan),
      communicator_(communicator),
      buffers_(buffers),
      options_(options),
      rank_(communicator.rank()),
      adamw_(MakeCpuAdamW()),
      progress_(plan.layout().parameters().size(), Progress::kUntouched),
      states_(plan.buckets().size()) {
  SH_CHECK(plan.ranks() == communicator.size());
  SH_CHECK(options.wire == DType::kF32 || options.wire == DType::kBF16);
  SH_CHECK(options.reductions_max >= 1);
  const size_t n = plan.ShardSize(rank_);
  for (const absl::Span<float>& buffer :
       {buffers.masters, buffers.first, buffers.second, buffers.gradients}) {
    SH_CHECK(buffer.size() == n, buffer.size(), " elements of a shard of ", n);
  }
  SH_CHECK(buffers.weights.count == plan.layout().size());
  SH_CHECK(buffers.weights.dtype == DType::kF32 || buffers.weights.dtype == DType::kBF16);
  SH_CHECK(buffers.weights.data != buffers.masters.data() ||
           (alone() && n == plan.layout().size()));
}

Zero2::~Zero2() {
  if (!dead_ && reductions_.empty() && gathers_.empty()) return;
  for (Reduction& reduction : reductions_) KeepForever(std::move(reduction.slot));
  for (BucketState& state : states_) KeepForever(std::move(state.slot));
  for (std::shared_ptr<Slot>& slot : free_) KeepForever(std::move(slot));
}

absl::Status Zero2::Died(absl::Status why) {
  dead_ = true;
  return why;
}

absl::Span<float> Zero2::PartOf(absl::Span<float> shard, size_t bucket) const {
  return shard.subspan(plan_.LocalOffset(rank_, bucket), Part(bucket).size());
}

TensorView Zero2::WeightsOfPart(size_t bucket) const {
  const size_t begin = plan_.buckets()[bucket].range.begin + Part(bucket).begin;
  TensorView view = buffers_.weights;
  view.data = static_cast<char*>(view.data) + begin * DTypeSize(view.dtype);
  view.count = Part(bucket).size();
  return view;
}

void Zero2::BeginStep() {
  SH_CHECK(!in_micro_batch_ && reductions_.empty());
  micro_batches_ = 0;
}

void Zero2::BeginMicroBatch() {
  SH_CHECK(!in_micro_batch_);
  in_micro_batch_ = true;
  next_bucket_ = 0;
  std::fill(progress_.begin(), progress_.end(), Progress::kUntouched);
  for (size_t b = 0; b < states_.size(); ++b) {
    const Bucket& bucket = plan_.buckets()[b];
    states_[b].missing = bucket.parameters_end - bucket.parameters_begin;
  }
}

absl::StatusOr<GradientPlace> Zero2::Begin(size_t parameter) {
  SH_CHECK(in_micro_batch_);
  const size_t b = plan_.BucketOf(parameter);
  if (b == BucketPlan::kNone) return GradientPlace{};
  SH_CHECK(progress_[parameter] != Progress::kReady, "begun after it was ready");
  const bool again = std::exchange(progress_[parameter], Progress::kBegun) == Progress::kBegun;
  const Bucket& bucket = plan_.buckets()[b];
  const size_t offset = plan_.layout().parameters()[parameter].offset - bucket.range.begin;
  // A gradient comes after the forward pass, which has read all weights; and of the collectives
  // under way a rank must not wait for a later one before an earlier one is over on the others.
  SH_RETURN_IF_ERROR(AwaitAllWeights());
  if (alone()) {
    return GradientPlace{PartOf(buffers_.gradients, b).data() + offset,
                         again || micro_batches_ > 0};
  }
  if (states_[b].slot == nullptr) {
    SH_ASSIGN_OR_RETURN(states_[b].slot, TakeSlot(bucket));
  }
  return GradientPlace{states_[b].slot->gradients.data() + offset, again};
}

// A free slot that is large enough, else a new one instead of one that is too small: there are
// never more than reductions under way and buckets begun, and after the first steps nothing is
// allocated.
absl::StatusOr<std::shared_ptr<Zero2::Slot>> Zero2::TakeSlot(const Bucket& bucket) {
  SH_RETURN_IF_ERROR(FinishReductions(options_.reductions_max - 1));
  const size_t needed = bucket.range.size();
  std::shared_ptr<Slot> slot;
  const auto by_size = [](const auto& a, const auto& b) {
    return a->gradients.size() < b->gradients.size();
  };
  std::sort(free_.begin(), free_.end(), by_size);
  for (auto it = free_.begin(); it != free_.end() && slot == nullptr; ++it) {
    if ((*it)->gradients.size() < needed) continue;
    slot = std::move(*it);
    free_.erase(it);
    break;
  }
  if (slot == nullptr) {
    if (!free_.empty()) {
      slot_bytes_ -= BytesOf(free_.back()->gradients) + BytesOf(free_.back()->sums);
      free_.pop_back();
    }
    slot = std::make_shared<Slot>();
    slot->gradients = FlatBuffer<float>(needed);
    // As much as a rank can own of any bucket that fits.
    slot->sums =
        FlatBuffer<float>(needed / static_cast<size_t>(communicator_.size()) + kFlatAlignment);
    slot_bytes_ += BytesOf(slot->gradients) + BytesOf(slot->sums);
    slot_bytes_max_ = std::max(slot_bytes_max_, slot_bytes_);
  }
  // What lies between parameters is summed too.
  const std::vector<FlatParameter>& parameters = plan_.layout().parameters();
  for (size_t i = bucket.parameters_begin; i < bucket.parameters_end; ++i) {
    const size_t end = i + 1 < bucket.parameters_end ? parameters[i + 1].offset : bucket.range.end;
    std::fill(
        slot->gradients.data() + (parameters[i].offset + parameters[i].count - bucket.range.begin),
        slot->gradients.data() + (end - bucket.range.begin), 0.0f);
  }
  return slot;
}

absl::Status Zero2::Ready(size_t parameter) {
  const size_t b = plan_.BucketOf(parameter);
  SH_CHECK(in_micro_batch_ && b != BucketPlan::kNone);
  SH_CHECK(progress_[parameter] == Progress::kBegun, "ready before it was begun, or twice");
  progress_[parameter] = Progress::kReady;
  --states_[b].missing;
  SH_RETURN_IF_ERROR(StartCompleteBuckets());
  return Poll();
}

absl::Status Zero2::StartCompleteBuckets() {
  for (; next_bucket_ < states_.size() && states_[next_bucket_].missing == 0; ++next_bucket_) {
    if (!alone()) SH_RETURN_IF_ERROR(StartReduction(next_bucket_));
  }
  return absl::OkStatus();
}

absl::Status Zero2::StartReduction(size_t b) {
  const Bucket& bucket = plan_.buckets()[b];
  SH_RETURN_IF_ERROR(FinishReductions(options_.reductions_max - 1));
  Reduction reduction{b, micro_batches_ > 0, std::move(states_[b].slot), nullptr};
  Slot& slot = *reduction.slot;
  TensorView input{slot.gradients.data(), bucket.range.size(), options_.wire};
  if (options_.wire == DType::kBF16) RoundInPlace(slot.gradients.data(), input.count);
  absl::Span<float> sums = PartOf(buffers_.gradients, b);
  if (reduction.add) {
    sums = slot.sums.span().subspan(0, sums.size());
  }
  Communicator::Pending pending =
      communicator_.ReduceScatter(input, bucket.shards, {sums.data(), sums.size(), DType::kF32});
  if (!pending.ok()) {
    KeepForever(std::move(reduction.slot));
    return Died(pending.status());
  }
  reduction.pending = *std::move(pending);
  reductions_.push_back(std::move(reduction));
  return absl::OkStatus();
}

absl::Status Zero2::FinishReductions(size_t left) {
  while (reductions_.size() > left) SH_RETURN_IF_ERROR(FinishOldestReduction());
  return absl::OkStatus();
}

absl::Status Zero2::FinishOldestReduction() {
  Reduction& oldest = reductions_.front();
  const absl::Status reduced = oldest.pending->Wait();
  if (!reduced.ok()) return Died(reduced);
  if (oldest.add) {
    const absl::Span<float> sums = PartOf(buffers_.gradients, oldest.bucket);
    for (size_t i = 0; i < sums.size(); ++i) sums[i] += oldest.slot->sums.data()[i];
  }
  free_.push_back(std::move(oldest.slot));
  reductions_.pop_front();
  return absl::OkStatus();
}

absl::Status Zero2::Poll() {
  while (!reductions_.empty()) {
    const absl::StatusOr<bool> done = reductions_.front().pending->Poll();
    if (!done.ok()) return Died(done.status());
    if (!*done) return absl::OkStatus();
    SH_RETURN_IF_ERROR(FinishOldestReduction());
  }
  return absl::OkStatus();
}

absl::Status Zero2::EndMicroBatch() {
  SH_CHECK(in_micro_batch_);
  const std::vector<FlatParameter>& parameters = plan_.layout().parameters();
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (plan_.BucketOf(i) == BucketPlan::kNone || progress_[i] == Progress::kReady) continue;
    SH_CHECK(progress_[i] == Progress::kUntouched, parameters[i].name, " was not ready");
    SH_ASSIGN_OR_RETURN(const GradientPlace place, Begin(i));
    if (!place.add) std::fill(place.data, place.data + parameters[i].count, 0.0f);
    SH_RETURN_IF_ERROR(Ready(i));
  }
  SH_CHECK(next_bucket_ == states_.size());
  in_micro_batch_ = false;
  ++micro_batches_;
  return absl::OkStatus();
}

absl::Status Zero2::AddNothing() {
  BeginMicroBatch();
  return EndMicroBatch();
}

absl::StatusOr<UpdateOutcome> Zero2::Update(const UpdateOptions& options, absl::Span<double> values,
                                            RangeRunner run) {
  SH_CHECK(!in_micro_batch_);
  SH_RETURN_IF_ERROR(FinishReductions(0));
  if (micro_batches_ == 0) {
    std::fill(buffers_.gradients.begin(), buffers_.gradients.end(), 0.0f);
  }
  // Of every rank: the sum of squares of its shard, and its values.
  std::vector<double> sums = {SumOfSquares(buffers_.gradients, run)};
  sums.insert(sums.end(), values.begin(), values.end());
  const absl::Status summed = SumOverRanks(communicator_, absl::MakeSpan(sums));
  if (!summed.ok()) return Died(summed);
  std::copy(sums.begin() + 1, sums.end(), values.begin());
  UpdateOutcome outcome;
  outcome.gradient_norm = std::sqrt(sums[0]);
  for (const double sum : sums) outcome.skipped |= !std::isfinite(sum);
  if (outcome.skipped) return outcome;

  const AdamWScalars scalars = AdamWScalarsFor(options.adamw, options.update, options.learning_rate,
                                               ClipScale(outcome.gradient_norm, options.clip));
  SH_RETURN_IF_ERROR(AwaitAllWeights());
  for (size_t b = plan_.buckets().size(); b-- > 0;) {
    const auto part = [&](absl::Span<float> shard) {
      const absl::Span<float> span = PartOf(shard, b);
      return TensorView{span.data(), span.size(), DType::kF32};
    };
    AdamWBuffers buffers{part(buffers_.masters),
                         part(buffers_.first),
                         part(buffers_.second),
                         part(buffers_.gradients),
                         {}};
    if (buffers_.weights.dtype == DType::kBF16) buffers.weights = WeightsOfPart(b);
    SH_RETURN_IF_ERROR(adamw_->Step(buffers, scalars, run));
    if (buffers_.weights.dtype == DType::kF32) SH_RETURN_IF_ERROR(CopyToWeights(b, run));
    SH_RETURN_IF_ERROR(BeginGather(b));
  }
  return outcome;
}

absl::Status Zero2::CopyToWeights(size_t b, RangeRunner run) {
  const absl::Span<const float> masters = PartOf(buffers_.masters, b);
  const TensorView weights = WeightsOfPart(b);
  if (weights.data == masters.data()) return absl::OkStatus();
  const bool is_bf16 = weights.dtype == DType::kBF16;
  run(masters.size(), [&](size_t begin, size_t end) {
    if (!is_bf16) {
      std::copy(masters.begin() + begin, masters.begin() + end,
                static_cast<float*>(weights.data) + begin);
      return;
    }
    auto* out = static_cast<uint16_t*>(weights.data);
    for (size_t i = begin; i < end; ++i) out[i] = RoundToBf16(masters[i]);
  });
  return absl::OkStatus();
}

absl::Status Zero2::PublishWeights(RangeRunner run) {
  SH_RETURN_IF_ERROR(AwaitAllWeights());
  for (size_t b = plan_.buckets().size(); b-- > 0;) {
    SH_RETURN_IF_ERROR(CopyToWeights(b, run));
    SH_RETURN_IF_ERROR(BeginGather(b));
  }
  return absl::OkStatus();
}

absl::Status Zero2::BeginGather(size_t b) {
  if (alone()) return absl::OkStatus();
  const Bucket& bucket = plan_.buckets()[b];
  TensorView whole = buffers_.weights;
  whole.data = static_cast<char*>(whole.data) + bucket.range.begin * DTypeSize(whole.dtype);
  whole.count = bucket.range.size();
  Communicator::Pending pending = communicator_.AllGather(WeightsOfPart(b), bucket.shards, whole);
  if (!pending.ok()) return Died(pending.status());
  gathers_.push_back({b, *std::move(pending)});
  const absl::StatusOr<bool> moved = gathers_.front().pending->Poll();
  return moved.ok() ? absl::OkStatus() : Died(moved.status());
}

absl::Status Zero2::AwaitWeights(size_t parameter) {
  const size_t bucket = plan_.BucketOf(parameter);
  if (bucket == BucketPlan::kNone) return absl::OkStatus();
  while (!gathers_.empty() && gathers_.front().bucket >= bucket) {
    const absl::Status gathered = gathers_.front().pending->Wait();
    if (!gathered.ok()) return Died(gathered);
    gathers_.pop_front();
  }
  return absl::OkStatus();
}

absl::Status Zero2::AwaitAllWeights() {
  while (!gathers_.empty()) {
    const absl::Status gathered = gathers_.front().pending->Wait();
    if (!gathered.ok()) return Died(gathered);
    gathers_.pop_front();
  }
  return absl::OkStatus();
}

std::string Zero2::Memory::Describe() const {
  const auto mb = [](size_t bytes) { return absl::StrCat((bytes + 500'000) / 1'000'000, " MB"); };
  return absl::StrCat(mb(total()), ": weights ", mb(weights), ", gradients ", mb(gradients),
                      ", masters and moments ", mb(optimizer), ", bucket buffers ",
                      mb(bucket_buffers));
}

Zero2::Memory Zero2::memory() const {
  Memory memory;
  memory.weights =
      buffers_.weights.data == buffers_.masters.data() ? 0 : buffers_.weights.size_bytes();
  memory.gradients = buffers_.gradients.size() * sizeof(float);
  memory.optimizer = 3 * buffers_.masters.size() * sizeof(float);
  memory.bucket_buffers = slot_bytes_max_;
  return memory;
}

}  // namespace stillhouse

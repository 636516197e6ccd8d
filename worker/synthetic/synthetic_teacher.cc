#include "worker/synthetic/synthetic_teacher.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "common/random.h"
#include "common/status.h"
#include "storage/codec.h"

namespace stillhouse {
namespace {

uint64_t SeedOf(const PlanDocument& document, absl::string_view purpose) {
  uint64_t seed = 0;
  std::memcpy(&seed, document.key.bytes.data(), sizeof(seed));
  return DeriveSeed(seed, purpose);
}

SectionRows SyntheticRows(const PlanDocument& document, uint32_t vocabulary,
                          const SectionSpec& spec) {
  switch (spec.kind) {
    case SectionKind::kStats:
      return SyntheticStats(document, vocabulary);
    case SectionKind::kLogitsSampled:
      return SyntheticSampled(document, vocabulary, spec.draws);
    case SectionKind::kLogitsTopK:
      return SyntheticTop(document, vocabulary, {.k = spec.k});
    case SectionKind::kLogitsTopP:
      return SyntheticTop(document, vocabulary, {.k = spec.k, .p = spec.p_millionths * 1e-6});
    case SectionKind::kHiddenLast:
      return SyntheticHidden(document, spec.hidden_size);
    case SectionKind::kHiddenLayer:
      return SyntheticHidden(document, spec.hidden_size, spec.layer + 1);
  }
  SH_CHECK(false, "section kind ", static_cast<int>(spec.kind));
}

std::vector<Part> MakeParts(const Digest& teacher, const PlanDocument& document,
                            uint32_t vocabulary, const SectionSpec& spec) {
  std::vector<Part> parts;
  const Digest section = SectionKey(teacher, document.key, spec);
  const SectionRows rows = SyntheticRows(document, vocabulary, spec);
  for (uint32_t begin = 0; begin < document.rows(); begin += spec.RowsPerPart()) {
    const uint32_t end = std::min(document.rows(), begin + spec.RowsPerPart());
    parts.push_back({{section, begin}, end - begin, EncodeSection(spec, rows, begin, end)});
  }
  return parts;
}

class SyntheticTeacher final : public ChunkWorker {
 public:
  SyntheticTeacher(CacheClient& cache, Executor& executor, const SyntheticTeacherOptions& options)
      : cache_(cache), executor_(executor), options_(options) {}

  ~SyntheticTeacher() override { executor_.Cancel(timer_); }

  void Start(const ChunkGrant& grant, absl::AnyInvocable<void(uint64_t)> progress,
             absl::AnyInvocable<void(absl::StatusOr<ChunkResult>)> done) override {
    SH_CHECK(!done_, "one chunk at a time");
    grant_ = grant;
    progress_ = std::move(progress);
    done_ = std::move(done);
    cancelled_ = false;
    rows_ = 0;
    result_ = {};
    acks_.clear();
    specs_.clear();
    started_ = executor_.clock().Now();
    for (const std::string& text : grant.sections) {
      absl::StatusOr<SectionSpec> spec = ParseSectionSpec(text);
      if (!spec.ok()) return EndLater(spec.status());
      specs_.push_back(*spec);
    }
    if (plan_ != nullptr && plan_->digest() == grant.plan) {
      timer_ = executor_.PostAfter(options_.batch_time, [this] { BeginChunk(); });
      return;
    }
    cache_.GetObject(PlanObjectName(grant.plan),
                     [this](absl::StatusOr<std::shared_ptr<const std::string>> bytes) {
                       OnPlan(std::move(bytes));
                     });
  }

  void Cancel() override { cancelled_ = true; }

 private:
  void OnPlan(absl::StatusOr<std::shared_ptr<const std::string>> bytes) {
    if (absl::IsResourceExhausted(bytes.status())) {  // too large, and will be: no lack of room
      return End(
          absl::InternalError(absl::StrCat("fetching the plan: ", bytes.status().message())));
    }
    if (!bytes.ok()) return End(Annotate(bytes.status(), "fetching the plan"));
    absl::StatusOr<std::shared_ptr<const Plan>> plan = ParsePlan(*std::move(bytes));
    if (!plan.ok()) return End(Annotate(plan.status(), "the plan"));
    plan_ = *std::move(plan);
    BeginChunk();
  }

  void BeginChunk() {
    if (grant_.chunk >= plan_->chunk_count()) {
      return End(absl::InvalidArgumentError(absl::StrCat("no chunk ", grant_.chunk)));
    }
    batch_ = 0;
    spec_ = 0;
    document_ = 0;
    PutNext();
  }

  // For each batch of the plan and each spec one Put, or several if it is large, one after another.
  void PutNext() {
    if (cancelled_) return End(absl::CancelledError("told to stop"));
    const PlanChunk chunk = plan_->chunk(grant_.chunk);
    if (batch_ == chunk.batches.size()) return Succeed();
    const PlanBatch batch = chunk.batches[batch_];
    document_ = std::max(document_, batch.begin);
    std::vector<Part> parts;
    uint64_t bytes = 0;
    for (; document_ < batch.end && bytes < kPutBytesMax / 4; ++document_) {
      for (Part& part : MakeParts(options_.teacher, plan_->document(document_), plan_->vocabulary(),
                                  specs_[spec_])) {
        bytes += part.payload.size();
        parts.push_back(std::move(part));
      }
    }
    Provenance provenance;
    provenance.teacher = options_.teacher;
    provenance.plan = grant_.plan;
    provenance.chunk = grant_.chunk;
    provenance.spec = specs_[spec_];
    provenance.producer_class = options_.producer_class;
    cache_.Put(std::move(parts), std::move(provenance), [this](absl::StatusOr<StoreAck> ack) {
      if (!ack.ok()) return End(Annotate(ack.status(), "storing"));
      OnStored(*ack);
    });
  }

  void OnStored(const StoreAck& ack) {
    acks_[ack.store_id] = std::max(acks_[ack.store_id], ack.incarnation);
    result_.parts_mismatched += ack.mismatched;
    const PlanBatch batch = plan_->chunk(grant_.chunk).batches[batch_];
    if (document_ < batch.end) return PutNext();
    document_ = batch.begin;
    if (++spec_ < specs_.size()) return PutNext();
    for (uint32_t i = batch.begin; i < batch.end; ++i) rows_ += plan_->document(i).rows();
    progress_(rows_);
    spec_ = 0;
    ++batch_;
    timer_ = executor_.PostAfter(options_.batch_time, [this] { PutNext(); });
  }

  void Succeed() {
    for (const auto& [store_id, incarnation] : acks_) {
      result_.acks.push_back({store_id, incarnation});
    }
    result_.rows_computed = rows_;
    result_.seconds = absl::ToDoubleSeconds(executor_.clock().Now() - started_);
    End(std::move(result_));
  }

  void End(absl::StatusOr<ChunkResult> result) {
    auto done = std::exchange(done_, nullptr);
    done(std::move(result));
  }
  void EndLater(absl::Status status) {
    timer_ = executor_.PostAfter(absl::ZeroDuration(),
                                 [this, status = std::move(status)] { End(status); });
  }

  CacheClient& cache_;
  Executor& executor_;
  const SyntheticTeacherOptions options_;
  std::shared_ptr<const Plan> plan_;  // of the last chunk

  ChunkGrant grant_;
  absl::AnyInvocable<void(uint64_t)> progress_;
  absl::AnyInvocable<void(absl::StatusOr<ChunkResult>)> done_;
  std::vector<SectionSpec> specs_;
  std::map<std::string, uint64_t> acks_;  // newest incarnation of each store
  ChunkResult result_;
  size_t batch_ = 0;
  size_t spec_ = 0;
  uint32_t document_ = 0;  // the first that this spec still lacks
  uint64_t rows_ = 0;
  bool cancelled_ = false;
  absl::Duration started_;
  TimerId timer_ = 0;
};

}  // namespace

StatsRows SyntheticStats(const PlanDocument& document, uint32_t vocabulary) {
  StatsRows rows;
  const uint64_t seed = SeedOf(document, "synthetic stats");
  for (uint32_t t = 0; t < document.rows(); ++t) {
    RandomStream random(seed, t);
    rows.entropy.push_back(static_cast<float>(8 * random.NextUniform()));
    rows.logsumexp.push_back(static_cast<float>(20 * random.NextUniform()));
    rows.top1_id.push_back(static_cast<int32_t>(random.NextBelow(vocabulary)));
    rows.top1_logprob.push_back(static_cast<float>(-3 * random.NextUniform()));
    rows.next_logprob.push_back(static_cast<float>(-3 - 9 * random.NextUniform()));
  }
  return rows;
}

SampledRows SyntheticSampled(const PlanDocument& document, uint32_t vocabulary, uint32_t draws) {
  SampledRows rows;
  rows.draws = draws;
  const uint64_t seed = SeedOf(document, "synthetic draws");
  for (uint32_t t = 0; t < document.rows(); ++t) {
    RandomStream random(seed, t);
    std::map<int32_t, uint16_t> counts;  // the product of two uniforms: some ids are drawn often
    for (uint32_t i = 0; i < draws; ++i) {
      const double u = random.NextUniform() * random.NextUniform();
      ++counts[std::min(static_cast<int32_t>(u * vocabulary),
                        static_cast<int32_t>(vocabulary) - 1)];
    }
    for (const auto& [id, count] : counts) {
      rows.ids.push_back(id);
      rows.counts.push_back(count);
    }
    rows.offsets.push_back(static_cast<uint32_t>(rows.ids.size()));
  }
  return rows;
}

TopTokenRows SyntheticTop(const PlanDocument& document, uint32_t vocabulary, const TopRule& rule) {
  TopTokenRows rows;
  const uint64_t seed = SeedOf(document, "synthetic top");
  std::vector<float> logprobs(vocabulary);
  for (uint32_t t = 0; t < document.rows(); ++t) {
    RandomStream random(seed, t);
    // Probability halves from one id to the next, from a first one on and around.
    const auto first = static_cast<uint32_t>(random.NextBelow(vocabulary));
    const double all = -std::expm1(-std::log(2.0) * vocabulary);
    for (uint32_t i = 0; i < vocabulary; ++i) {
      logprobs[(first + i) % vocabulary] =
          static_cast<float>(-std::log(2.0) * (i + 1) - std::log(all));
    }
    AppendTopRow(logprobs, rule, &rows);
  }
  return rows;
}

HiddenRows SyntheticHidden(const PlanDocument& document, uint32_t hidden_size, uint32_t which) {
  HiddenRows rows;
  rows.hidden_size = hidden_size;
  const uint64_t seed =
      SeedOf(document, which == 0 ? "synthetic hidden" : absl::StrCat("synthetic hidden ", which));
  rows.values.reserve(static_cast<size_t>(document.rows()) * hidden_size);
  for (uint32_t t = 0; t < document.rows(); ++t) {
    RandomStream random(seed, t);
    for (uint32_t i = 0; i < hidden_size; ++i) {  // bf16 bits of a number in (-2, 2)
      const uint32_t word = random.Next32();
      rows.values.push_back(static_cast<uint16_t>((word & 0x8000) | (word >> 16) % 0x4000));
    }
  }
  return rows;
}

std::unique_ptr<ChunkWorker> MakeSyntheticTeacher(CacheClient& cache, Executor& executor,
                                                  const SyntheticTeacherOptions& options) {
  return std::make_unique<SyntheticTeacher>(cache, executor, options);
}

}  // namespace stillhouse

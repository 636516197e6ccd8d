#include "student/prefetcher.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_join.h"
#include "common/status.h"
#include "storage/codec.h"
#include "storage/codec/top_tokens.h"
#include "student/run_stop.h"

namespace stillhouse {
namespace {

constexpr size_t kQueueDocumentsMax = 2048;  // looked ahead for the coordinator's sake; ids only
constexpr size_t kWantChunksMax = 64;        // of one question: about a million rows of demand
constexpr int kFetchesInFlightMax = 4;       // hides the latency of one behind the others
constexpr size_t kFetchDocumentsMax = 32;
constexpr uint64_t kFetchBytesMax = 4ull << 20;  // of plain rows; a stored part is smaller
constexpr int kMissingMax = 5;                   // then what was called durable is called lost
constexpr absl::Duration kRetryMin = absl::Milliseconds(20);
constexpr absl::Duration kRetryMax = absl::Seconds(10);
constexpr absl::Duration kFarAway = absl::Hours(1);  // before the first step's speed is known

}  // namespace

struct Prefetcher::Fetch {
  struct Piece {
    uint64_t serial = 0;  // of the document in the queue
    SectionSpec spec;
    PartKey key;
    uint32_t rows = 0;
  };
  std::vector<uint64_t> serials;
  std::vector<Piece> pieces;
};

Prefetcher::Prefetcher(Executor& executor, RunClient& run, CacheClient& cache,
                       std::shared_ptr<const Plan> plan, PrefetchOptions options, DocumentList next)
    : executor_(executor),
      run_(run),
      cache_(cache),
      plan_(std::move(plan)),
      options_(std::move(options)),
      next_(std::move(next)),
      self_(std::make_shared<Prefetcher*>(this)) {}

Prefetcher::~Prefetcher() {
  if (retry_timer_ != 0) executor_.Cancel(retry_timer_);
}

void Prefetcher::Take(size_t count, TakeCallback done) {
  SH_CHECK(take_done_ == nullptr && count > 0);
  take_count_ = count;
  take_done_ = std::move(done);
  Pump();
}

void Prefetcher::Fail(absl::Status why) {
  SH_CHECK(!why.ok());
  if (failed_.ok()) failed_ = std::move(why);
  Deliver();
}

void Prefetcher::Pump() {
  if (failed_.ok()) {
    FillQueue();
    AskForChunks();
    StartFetches();
  }
  Deliver();
}

void Prefetcher::FillQueue() {
  while (!at_end_ && (queue_.size() < kQueueDocumentsMax || mine_queued_ < take_count_)) {
    const std::optional<ListedDocument> listed = next_();
    if (!listed.has_value()) {
      at_end_ = true;
      return;
    }
    const PlanDocument planned = plan_->document(listed->document);
    Entry entry;
    entry.targets.document = listed->document;
    entry.chunk = planned.chunk;
    entry.rows = planned.rows();
    entry.mine = listed->mine;
    if (options_.sections.empty() || !entry.mine) entry.state = State::kReady;
    mine_queued_ += entry.mine ? 1 : 0;
    queue_.push_back(std::move(entry));
  }
}

void Prefetcher::AskForChunks() {
  if (want_in_flight_ || options_.sections.empty()) return;
  std::vector<WantItem> items;
  bool pending = false, anything_new = false;
  uint64_t rows = 0;
  std::map<uint32_t, bool> listed;
  for (const Entry& entry : queue_) {
    if (items.size() == kWantChunksMax) break;
    const ChunkState& chunk = Chunk(entry.chunk);
    if (!listed[entry.chunk]) {
      // Those that are there are listed too: where the cache is bounded, they make room when no run
      // lists them any more.
      listed[entry.chunk] = true;
      pending = pending || !chunk.watch.durable();
      anything_new = anything_new || (!chunk.watch.durable() && !chunk.asked);
      const bool now = rows < options_.read_ahead_rows;
      const absl::Duration within = rows_per_s_ > 0
                                        ? absl::Seconds(static_cast<double>(rows) / rows_per_s_)
                                        : (now ? absl::ZeroDuration() : kFarAway);
      items.push_back({entry.chunk, within});
    }
    rows += entry.rows;
  }
  if (!pending && !chunk_passed_) return;
  if (items.empty() || (!anything_new && retry_timer_ != 0)) return;
  chunk_passed_ = false;
  if (retry_timer_ != 0) executor_.Cancel(retry_timer_);
  retry_timer_ = 0;
  for (const WantItem& item : items) Chunk(item.chunk).asked = true;
  want_in_flight_ = true;
  run_.Want(items, [weak = std::weak_ptr<Prefetcher*>(self_),
                    items](absl::StatusOr<WantAnswer> answer) mutable {
    if (const auto self = weak.lock()) (*self)->OnWantAnswer(items, std::move(answer));
  });
}

void Prefetcher::OnWantAnswer(const std::vector<WantItem>& items,
                              absl::StatusOr<WantAnswer> answer) {
  want_in_flight_ = false;
  if (!answer.ok()) {
    const absl::Status status = Annotate(answer.status(), "asking the coordinator for chunks");
    return Fail(absl::IsAborted(status) ? StopStatus(RunStop::kSuperseded, status.message())
                                        : status);
  }
  if (answer->cancelled) {
    return Fail(StopStatus(RunStop::kCancelled, "the run was cancelled"));
  }
  if (answer->states.size() != items.size()) {
    return Fail(absl::InternalError(absl::StrCat("the coordinator answered ", answer->states.size(),
                                                 " of ", items.size(), " chunks")));
  }
  const absl::Duration now = executor_.clock().Now();
  for (size_t i = 0; i < items.size(); ++i) {
    ChunkState& chunk = Chunk(items[i].chunk);
    chunk.watch.Note(answer->states[i], now);
    // Whoever called it durable knows better now: it made room for others and comes again.
    if (!chunk.watch.durable()) chunk.missing = 0;
  }
  const absl::Duration delay = std::clamp(answer->retry, kRetryMin, kRetryMax);
  retry_timer_ = executor_.PostAfter(delay, [weak = std::weak_ptr<Prefetcher*>(self_)] {
    if (const auto self = weak.lock()) {
      (*self)->retry_timer_ = 0;
      (*self)->Pump();
    }
  });
  Pump();
}

Prefetcher::ChunkState& Prefetcher::Chunk(uint32_t chunk) {
  return chunks_.try_emplace(chunk, ChunkState{ChunkWatch(chunk, options_.needs_teacher_grace)})
      .first->second;
}

// Rows at the head of the queue that may be in memory.
uint64_t Prefetcher::RowsWanted() const {
  uint64_t rows = 0;
  const size_t end = EndOfTake(take_count_);
  for (size_t i = 0; i < end; ++i) rows += queue_[i].mine ? queue_[i].rows : 0;
  return std::max(rows, options_.read_ahead_rows);
}

// How much of the queue it takes for `count` documents that are mine; all of it if it has fewer.
size_t Prefetcher::EndOfTake(size_t count) const {
  size_t end = 0;
  for (; end < queue_.size() && count > 0; ++end) count -= queue_[end].mine ? 1 : 0;
  return end;
}

void Prefetcher::StartFetches() {
  const uint64_t allowed = RowsWanted();
  while (fetches_ < kFetchesInFlightMax && StartFetch(allowed)) {
  }
}

bool Prefetcher::StartFetch(uint64_t rows_allowed) {
  auto fetch = std::make_shared<Fetch>();
  std::vector<PartKey> keys;
  uint64_t rows = 0, bytes = 0;
  for (size_t i = 0; i < queue_.size() && rows + queue_[i].rows <= rows_allowed; ++i) {
    Entry& entry = queue_[i];
    if (!entry.mine) continue;
    rows += entry.rows;
    if (entry.state != State::kWaiting) continue;
    if (!Chunk(entry.chunk).watch.durable()) continue;
    if (fetch->serials.size() == kFetchDocumentsMax || bytes >= kFetchBytesMax) break;
    entry.state = State::kFetching;
    fetch->serials.push_back(first_serial_ + i);
    const Digest document = plan_->document(entry.targets.document).key;
    for (const SectionSpec& spec : options_.sections) {
      const Digest section = SectionKey(options_.teacher, document, spec);
      const uint32_t step = spec.RowsPerPart();
      for (uint32_t begin = 0; begin < entry.rows; begin += step) {
        const uint32_t count = std::min(step, entry.rows - begin);
        fetch->pieces.push_back({first_serial_ + i, spec, {section, begin}, count});
        keys.push_back({section, begin});
        bytes += kPartBytesMax / step * count;
      }
    }
  }
  if (fetch->serials.empty()) return false;
  ++fetches_;
  cache_.Get(std::move(keys), [weak = std::weak_ptr<Prefetcher*>(self_), fetch](
                                  absl::StatusOr<std::vector<std::optional<Part>>> parts) mutable {
    if (const auto self = weak.lock()) (*self)->OnFetched(fetch, std::move(parts));
  });
  return true;
}

void Prefetcher::OnFetched(std::shared_ptr<Fetch> fetch,
                           absl::StatusOr<std::vector<std::optional<Part>>> parts) {
  --fetches_;
  if (!parts.ok()) return Fail(Annotate(parts.status(), "reading from the cache"));
  if (parts->size() != fetch->pieces.size()) {
    return Fail(absl::InternalError("the cache answered another number of parts than asked"));
  }
  const absl::Status status = Decode(*fetch, *parts);
  if (!status.ok()) return Fail(status);
  Pump();
}

absl::Status Prefetcher::Decode(const Fetch& fetch, std::vector<std::optional<Part>>& parts) {
  for (const uint64_t serial : fetch.serials) {
    queue_[serial - first_serial_].state = State::kReady;  // unless a piece of it is missing
  }
  for (size_t i = 0; i < fetch.pieces.size(); ++i) {
    const Fetch::Piece& piece = fetch.pieces[i];
    Entry& entry = queue_[piece.serial - first_serial_];
    if (entry.state == State::kWaiting) continue;
    const std::string what =
        absl::StrCat("document ", entry.targets.document, " section ", piece.spec.Name());
    if (!parts[i].has_value()) {
      entry.state = State::kWaiting;
      entry.targets = DocumentTargets{.document = entry.targets.document};
      // Asked again, whoever said that it was durable may find out.
      ChunkState& chunk = Chunk(entry.chunk);
      if (chunk.watch.durable()) ++chunk.missing;  // once, however many of its documents lack it
      chunk.watch.Note(
          chunk.missing > kMissingMax ? ChunkAvailability::kLost : ChunkAvailability::kPending,
          executor_.clock().Now());
      continue;
    }
    if (parts[i]->row_count != piece.rows) {
      return absl::DataLossError(
          absl::StrCat(what, ": a part has ", parts[i]->row_count, " rows, expected ", piece.rows));
    }
    DocumentTargets& targets = entry.targets;
    absl::Status status;
    switch (piece.spec.kind) {
      case SectionKind::kStats:
        status = DecodeStats(parts[i]->payload, piece.rows, &targets.stats);
        break;
      case SectionKind::kLogitsSampled:
        targets.sampled.draws = piece.spec.draws;
        status =
            DecodeSampled(parts[i]->payload, piece.rows, plan_->vocabulary(), &targets.sampled);
        break;
      case SectionKind::kHiddenLast:
        targets.hidden.hidden_size = piece.spec.hidden_size;
        status = piece.spec.dtype == HiddenDtype::kInt8
                     ? DecodeHiddenInt8(parts[i]->payload, piece.rows, &targets.hidden)
                     : DecodeHidden(parts[i]->payload, piece.rows, &targets.hidden);
        break;
      case SectionKind::kLogitsTopK:
        status = DecodeTopTokens(parts[i]->payload, piece.rows, plan_->vocabulary(), piece.spec.k,
                                 &targets.top);
        break;
      case SectionKind::kLogitsTopP:
      case SectionKind::kHiddenLayer:
        status = absl::UnimplementedError("no loss reads it");
        break;
    }
    SH_RETURN_IF_ERROR_AT(status, what);
  }
  return absl::OkStatus();
}

// Is a chunk done with, as far as we look ahead? Then the coordinator is told, since its place may
// be needed.
void Prefetcher::NoteChunksPassed(std::set<uint32_t> passed) {
  for (size_t i = 0; i < queue_.size() && !passed.empty(); ++i) passed.erase(queue_[i].chunk);
  chunk_passed_ = chunk_passed_ || !passed.empty();
}

// Data that is stored and on its way is not worth a word.
void Prefetcher::TellWhatIsMissing(size_t end) {
  if (options_.on_wait == nullptr) return;
  std::set<uint32_t> chunks;
  for (size_t i = 0; i < end; ++i) {
    if (queue_[i].state != State::kReady && Chunk(queue_[i].chunk).watch.pending()) {
      chunks.insert(queue_[i].chunk);
    }
  }
  if (chunks.empty()) return;
  const std::string what =
      chunks.size() == 1
          ? absl::StrCat("needs chunk ", *chunks.begin(), ", which is not captured yet")
          : absl::StrCat("needs chunks ", absl::StrJoin(chunks, ", "),
                         ", which are not captured yet (dataset.shuffle_window mixes them)");
  if (what == told_) return;
  told_ = what;
  options_.on_wait(what);
}

void Prefetcher::Deliver() {
  if (take_done_ == nullptr) return;
  if (!failed_.ok()) {
    auto done = std::exchange(take_done_, nullptr);
    return done(failed_);
  }
  if (!at_end_ && mine_queued_ < take_count_) return;
  const size_t end = EndOfTake(take_count_);
  for (size_t i = 0; i < end; ++i) {
    if (queue_[i].state == State::kReady) continue;
    const absl::Status problem = Chunk(queue_[i].chunk).watch.problem();
    if (!problem.ok()) return Fail(problem);
    return TellWhatIsMissing(end);
  }
  std::vector<DocumentTargets> taken;
  std::set<uint32_t> passed;
  for (size_t i = 0; i < end; ++i) {
    passed.insert(queue_.front().chunk);
    if (queue_.front().mine) taken.push_back(std::move(queue_.front().targets));
    queue_.pop_front();
  }
  mine_queued_ -= taken.size();
  first_serial_ += end;
  take_count_ = 0;
  told_.clear();
  NoteChunksPassed(std::move(passed));
  // Reading ahead goes on by itself: `done` may take its time, destroy this object, or call Take.
  executor_.Post([weak = std::weak_ptr<Prefetcher*>(self_)] {
    if (const auto self = weak.lock()) (*self)->Pump();
  });
  auto done = std::exchange(take_done_, nullptr);
  done(std::move(taken));
}

}  // namespace stillhouse

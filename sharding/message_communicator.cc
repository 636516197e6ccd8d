#include "sharding/message_communicator.h"

#include <algorithm>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_join.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "common/status.h"
#include "sharding/collective.h"
#include "sharding/message_exchange.h"

namespace stillhouse {
namespace {

// Started and not done. Far more than a step has buckets; each costs staging memory.
constexpr size_t kExchangesMax = 4096;

// Wait looks so often, giving its core away in between, before it rests for a moment each time:
// ranks that share cores must not take them from the one that they wait for.
constexpr int kLooksMax = 1000;
constexpr absl::Duration kRest = absl::Microseconds(50);

// What a rank that gives up tells the others: the code in one byte, then the message.
std::string NoticeOf(const absl::Status& why) {
  std::string text(1, static_cast<char>(why.code()));
  absl::StrAppend(&text, why.message());
  return text.substr(0, MessageLayer::kNoticeBytesMax);
}
absl::Status StatusOfNotice(absl::string_view text) {
  const bool late =
      !text.empty() && text[0] == static_cast<char>(absl::StatusCode::kDeadlineExceeded);
  const absl::string_view message = text.empty() ? "collective: a rank gave up" : text.substr(1);
  return late ? absl::DeadlineExceededError(message) : absl::AbortedError(message);
}

// The layer and all that is under way on it; shared by the communicator and its pending
// collectives.
class Engine : public std::enable_shared_from_this<Engine> {
 public:
  Engine(std::unique_ptr<MessageLayer> layer, const MessageOptions& options)
      : rank_(layer->rank()),
        size_(layer->size()),
        options_(FitToRanks(options, layer->size())),
        layer_(std::move(layer)) {}

  int rank() const { return rank_; }
  int size() const { return size_; }

  absl::StatusOr<std::shared_ptr<Exchange>> Begin(Collective collective) {
    MutexLock lock(mutex_);
    SH_RETURN_IF_ERROR(dead_);
    SH_CHECK(exchanges_.size() < kExchangesMax);
    FlatBuffer<char> staging = StagingOf(Exchange::StagingBytes(collective, size_, options_));
    auto exchange = std::make_shared<Exchange>(std::move(collective), sequence_++, *layer_,
                                               options_, std::move(staging));
    exchanges_.push_back(exchange);
    Die(exchange->Start());
    SH_RETURN_IF_ERROR(dead_);
    return exchange;
  }

  absl::StatusOr<bool> Poll(const Exchange& exchange) {
    MutexLock lock(mutex_);
    Advance();
    SH_RETURN_IF_ERROR(dead_);
    return exchange.done();
  }

  absl::Status Wait(const Exchange& exchange) {
    const absl::Duration until = SystemClock().Now() + options_.deadline;
    for (int looks = 0;;) {
      {
        MutexLock lock(mutex_);
        const bool moved = Advance();
        SH_RETURN_IF_ERROR(dead_);
        if (exchange.done()) return absl::OkStatus();
        if (SystemClock().Now() > until) {
          Die(absl::DeadlineExceededError(
              absl::StrCat("collective: rank ", absl::StrJoin(exchange.Awaited(), ", "),
                           " did not come within ", absl::FormatDuration(options_.deadline))));
          return dead_;
        }
        looks = moved ? 0 : looks + 1;
        if (looks > kLooksMax) died_.WaitFor(mutex_, kRest);
      }
      if (looks > 0) std::this_thread::yield();
    }
  }

  void Abort() {
    MutexLock lock(mutex_);
    Die(absl::AbortedError(absl::StrCat("collective: rank ", rank_, " gave up")));
  }

 private:
  // Moves all exchanges on, in the order in which they were started. Whether anything moved.
  bool Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!dead_.ok()) return false;
    auto notice = layer_->TakeNotice();
    if (!notice.ok()) Die(notice.status());
    if (notice.ok() && notice->has_value()) Die(StatusOfNotice(**notice));
    bool moved = false;
    for (const auto& exchange : exchanges_) {
      if (!dead_.ok()) return false;
      const absl::StatusOr<bool> advanced = exchange->Advance();
      Die(advanced.status());
      moved |= advanced.ok() && *advanced;
    }
    std::erase_if(exchanges_,
                  [this](const std::shared_ptr<Exchange>& exchange) ABSL_NO_THREAD_SAFETY_ANALYSIS {
                    if (!exchange->done()) return false;
                    FlatBuffer<char> staging = exchange->TakeStaging();
                    if (staging.size() > 0) spare_.push_back(std::move(staging));
                    return true;
                  });
    return moved;
  }

  // Unless `why` is OK: tells the others, and keeps for ever what messages may still write to.
  void Die(const absl::Status& why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (why.ok() || !dead_.ok()) return;
    dead_ = why;
    died_.NotifyAll();
    const std::string notice = NoticeOf(why);
    for (int peer = 0; peer < size_; ++peer) {
      if (peer != rank_) layer_->SendNotice(peer, notice).IgnoreError();
    }
    static Mutex mutex;
    static auto& graveyard = *new std::vector<std::shared_ptr<Engine>>;
    MutexLock lock(mutex);
    graveyard.push_back(shared_from_this());
  }

  FlatBuffer<char> StagingOf(size_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (bytes == 0) return {};
    if (spare_.empty()) return FlatBuffer<char>(bytes);  // all are of one size
    FlatBuffer<char> staging = std::move(spare_.back());
    spare_.pop_back();
    return staging;
  }

  const int rank_, size_;
  const MessageOptions options_;
  Mutex mutex_;
  const std::unique_ptr<MessageLayer> layer_ ABSL_PT_GUARDED_BY(mutex_);
  CondVar died_;
  absl::Status dead_ ABSL_GUARDED_BY(mutex_);
  uint64_t sequence_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<std::shared_ptr<Exchange>> exchanges_ ABSL_GUARDED_BY(mutex_);
  std::vector<FlatBuffer<char>> spare_ ABSL_GUARDED_BY(mutex_);
};

class MessagePending final : public PendingCollective {
 public:
  MessagePending(std::shared_ptr<Engine> engine, std::shared_ptr<Exchange> exchange)
      : engine_(std::move(engine)), exchange_(std::move(exchange)) {}
  ~MessagePending() override {
    if (!waited_) engine_->Abort();
  }
  absl::StatusOr<bool> Poll() override { return engine_->Poll(*exchange_); }
  absl::Status Wait() override {
    SH_CHECK(!waited_);
    waited_ = true;
    return engine_->Wait(*exchange_);
  }

 private:
  const std::shared_ptr<Engine> engine_;
  const std::shared_ptr<Exchange> exchange_;
  bool waited_ = false;
};

class MessageCommunicator final : public CheckedCommunicator {
 public:
  explicit MessageCommunicator(std::shared_ptr<Engine> engine) : engine_(std::move(engine)) {}

  int rank() const override { return engine_->rank(); }
  int size() const override { return engine_->size(); }
  void Abort() override { engine_->Abort(); }

 protected:
  Pending Begin(Collective collective) override {
    SH_ASSIGN_OR_RETURN(auto exchange, engine_->Begin(std::move(collective)));
    return std::unique_ptr<PendingCollective>(
        std::make_unique<MessagePending>(engine_, std::move(exchange)));
  }

 private:
  const std::shared_ptr<Engine> engine_;
};

}  // namespace

MessageOptions FitToRanks(MessageOptions options, int ranks) {
  const size_t slots = static_cast<size_t>(options.pieces_in_flight) * std::max(1, ranks - 1);
  const size_t fitting =
      std::max(kStagingBytesMax / slots / sizeof(float) * sizeof(float), kPieceBytesMin);
  options.piece_bytes = std::min(options.piece_bytes, fitting);
  return options;
}

std::unique_ptr<Communicator> MakeMessageCommunicator(std::unique_ptr<MessageLayer> layer,
                                                      const MessageOptions& options) {
  SH_CHECK(options.piece_bytes > 0 && options.piece_bytes % sizeof(float) == 0);
  SH_CHECK(options.pieces_in_flight > 0);
  return std::make_unique<MessageCommunicator>(std::make_shared<Engine>(std::move(layer), options));
}

}  // namespace stillhouse

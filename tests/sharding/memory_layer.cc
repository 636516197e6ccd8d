#include "tests/sharding/memory_layer.h"

#include <cstring>
#include <deque>
#include <map>
#include <tuple>

#include "common/status.h"

namespace stillhouse {

class MemorySwitch {
 public:
  explicit MemorySwitch(int ranks) : errors_(ranks), notices_(ranks) {}

  int ranks() const { return static_cast<int>(notices_.size()); }

  void Fail(int rank, const absl::Status& error) {
    MutexLock lock(mutex_);
    errors_[rank] = error;
  }

  absl::StatusOr<uint64_t> Start(int rank, int from, int to, int tag, void* data, size_t bytes) {
    MutexLock lock(mutex_);
    SH_RETURN_IF_ERROR(errors_[rank]);
    const uint64_t id = next_++;
    open_[id] = false;
    Channel& channel = channels_[{from, to, tag}];
    auto& own = rank == from ? channel.sends : channel.receives;
    own.push_back({id, data, bytes});
    if (channel.sends.empty() || channel.receives.empty()) return id;
    const Message send = channel.sends.front(), receive = channel.receives.front();
    channel.sends.pop_front();
    channel.receives.pop_front();
    if (send.bytes > receive.bytes) return absl::InternalError("memory: message truncated");
    if (send.bytes > 0) std::memcpy(receive.data, send.data, send.bytes);
    open_[send.id] = open_[receive.id] = true;
    return id;
  }

  absl::StatusOr<bool> Test(int rank, uint64_t id) {
    MutexLock lock(mutex_);
    SH_RETURN_IF_ERROR(errors_[rank]);
    const auto found = open_.find(id);
    SH_CHECK(found != open_.end(), "tested after its end");
    if (!found->second) return false;
    open_.erase(found);
    return true;
  }

  absl::Status Notify(int rank, int peer, absl::string_view text) {
    MutexLock lock(mutex_);
    SH_RETURN_IF_ERROR(errors_[rank]);
    notices_[peer].push_back(std::string(text));
    return absl::OkStatus();
  }

  absl::StatusOr<std::optional<std::string>> TakeNotice(int rank) {
    MutexLock lock(mutex_);
    SH_RETURN_IF_ERROR(errors_[rank]);
    if (notices_[rank].empty()) return std::nullopt;
    std::string text = std::move(notices_[rank].front());
    notices_[rank].pop_front();
    return text;
  }

 private:
  struct Message {
    uint64_t id;
    void* data;
    size_t bytes;
  };
  struct Channel {
    std::deque<Message> sends, receives;  // one of the two is empty
  };

  Mutex mutex_;
  std::vector<absl::Status> errors_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::deque<std::string>> notices_;
  std::map<std::tuple<int, int, int>, Channel> channels_ ABSL_GUARDED_BY(mutex_);
  std::map<uint64_t, bool> open_ ABSL_GUARDED_BY(mutex_);  // whether it is over
  uint64_t next_ ABSL_GUARDED_BY(mutex_) = 1;
};

namespace {

class MemoryLayer final : public MessageLayer {
 public:
  MemoryLayer(std::shared_ptr<MemorySwitch> hub, int rank) : hub_(std::move(hub)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return hub_->ranks(); }
  absl::StatusOr<Request> Send(int peer, int tag, const void* data, size_t bytes) override {
    return hub_->Start(rank_, rank_, peer, tag, const_cast<void*>(data), bytes);
  }
  absl::StatusOr<Request> Receive(int peer, int tag, void* data, size_t bytes) override {
    return hub_->Start(rank_, peer, rank_, tag, data, bytes);
  }
  absl::StatusOr<bool> Test(Request request) override { return hub_->Test(rank_, request); }
  absl::Status SendNotice(int peer, absl::string_view text) override {
    return hub_->Notify(rank_, peer, text);
  }
  absl::StatusOr<std::optional<std::string>> TakeNotice() override {
    return hub_->TakeNotice(rank_);
  }

 private:
  const std::shared_ptr<MemorySwitch> hub_;
  const int rank_;
};

}  // namespace

std::shared_ptr<MemorySwitch> MakeMemorySwitch(int ranks) {
  return std::make_shared<MemorySwitch>(ranks);
}
std::unique_ptr<MessageLayer> MakeMemoryLayer(std::shared_ptr<MemorySwitch> hub, int rank) {
  return std::make_unique<MemoryLayer>(std::move(hub), rank);
}
void FailMemoryLayer(MemorySwitch& hub, int rank, const absl::Status& error) {
  hub.Fail(rank, error);
}

}  // namespace stillhouse

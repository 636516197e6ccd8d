#include "transport/zmq_channel.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

#include <atomic>
#include <deque>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/status.h"
#include "transport/ipc_address.h"

namespace stillhouse {
namespace {

constexpr int kHeartbeatMs = 1000;
constexpr int kHeartbeatTimeoutMs = 5000;  // a peer silent for this long is gone
constexpr int kHandshakeMs = 5000;
constexpr int kReconnectMs = 20;  // grows to kReconnectMaxMs while nobody answers
constexpr int kReconnectMaxMs = 500;
constexpr int kMessagesPerTurnMax = 64;  // then others on the loop have a turn
// Smaller frames are copied: cheaper than handing them over, and one that was received would keep
// the whole buffer that ZeroMQ read it into.
constexpr size_t kCopyBytesMax = 1024;
constexpr size_t kPeersCountedMax = 1024;  // then peers that owe nothing are forgotten

absl::Status ZmqStatus(absl::string_view action, absl::string_view address) {
  const int error = zmq_errno();
  const std::string message = absl::StrCat(action, " ", address, ": ", zmq_strerror(error));
  if (error == EACCES || error == EPERM) return absl::PermissionDeniedError(message);
  if (error == EMFILE) return absl::ResourceExhaustedError(message);
  return absl::InternalError(message);
}

// Bytes of frames that ZeroMQ holds. Atomic: its I/O thread releases them.
using BytesInFlight = std::atomic<uint64_t>;

struct HeldFrame {
  Frame frame;
  std::shared_ptr<BytesInFlight> in_flight;
};

void ReleaseFrame(void* /*data*/, void* hint) {
  auto* held = static_cast<HeldFrame*>(hint);
  held->in_flight->fetch_sub(held->frame.size(), std::memory_order_relaxed);
  delete held;
}

// A zmq_msg_t that closes itself.
class Message {
 public:
  Message() { zmq_msg_init(&message_); }
  explicit Message(absl::string_view bytes) {
    SH_CHECK(zmq_msg_init_size(&message_, bytes.size()) == 0, "out of memory");
    memcpy(zmq_msg_data(&message_), bytes.data(), bytes.size());
  }
  // Holds the frame until ZeroMQ has sent it, which never writes to the bytes of what it sends.
  Message(const Frame& frame, const std::shared_ptr<BytesInFlight>& in_flight) {
    in_flight->fetch_add(frame.size(), std::memory_order_relaxed);
    SH_CHECK(zmq_msg_init_data(&message_, const_cast<char*>(frame.data()), frame.size(),
                               ReleaseFrame, new HeldFrame{frame, in_flight}) == 0,
             "out of memory");
  }
  ~Message() { zmq_msg_close(&message_); }
  Message(const Message&) = delete;
  Message& operator=(const Message&) = delete;

  zmq_msg_t* get() { return &message_; }
  absl::string_view bytes() {
    return {static_cast<const char*>(zmq_msg_data(&message_)), zmq_msg_size(&message_)};
  }
  bool more() const { return zmq_msg_more(&message_) != 0; }
  Frame TakeFrame() {  // leaves an empty message
    if (bytes().size() <= kCopyBytesMax) return std::string(bytes());
    auto owner = std::make_shared<Message>();
    zmq_msg_move(owner->get(), &message_);
    return Frame(owner->bytes(), owner);
  }

 private:
  zmq_msg_t message_;
};

// Tells when a client's socket gains and loses its connection.
class ConnectionMonitor {
 public:
  // `changed(true)` on the loop for each connection made, `changed(false)` for each lost.
  ConnectionMonitor(EventLoop& loop, absl::AnyInvocable<void(bool)> changed)
      : loop_(loop), changed_(std::move(changed)) {}
  ~ConnectionMonitor() {
    if (fd_ >= 0) loop_.UnwatchFd(fd_);
    if (events_ != nullptr) zmq_close(events_);
  }
  ConnectionMonitor(const ConnectionMonitor&) = delete;
  ConnectionMonitor& operator=(const ConnectionMonitor&) = delete;

  // REQUIRES: `socket` outlives this and is not connected yet.
  absl::Status Watch(void* context, void* socket) {
    constexpr char kAddress[] = "inproc://connections";
    size_t size = sizeof(fd_);
    events_ = zmq_socket(context, ZMQ_PAIR);
    if (events_ == nullptr ||
        zmq_socket_monitor(socket, kAddress,
                           ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_DISCONNECTED) != 0 ||
        zmq_connect(events_, kAddress) != 0 || zmq_getsockopt(events_, ZMQ_FD, &fd_, &size) != 0) {
      return ZmqStatus("watching the connections of", "a socket");
    }
    loop_.WatchFd(fd_, [this] { Read(); });
    Read();  // a writer wakes only a reader that found nothing once
    return absl::OkStatus();
  }

 private:
  // An event is two frames: its number (16 bits) and value, then the address. Reads until nothing
  // is left, so that the edge-triggered descriptor wakes again.
  void Read() {
    for (;;) {
      Message number, address;
      if (zmq_msg_recv(number.get(), events_, ZMQ_DONTWAIT) < 0) return;
      if (number.more()) zmq_msg_recv(address.get(), events_, ZMQ_DONTWAIT);
      uint16_t event = 0;
      if (number.bytes().size() < sizeof(event)) continue;
      memcpy(&event, number.bytes().data(), sizeof(event));
      changed_(event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED);
    }
  }

  EventLoop& loop_;
  absl::AnyInvocable<void(bool)> changed_;
  void* events_ = nullptr;
  int fd_ = -1;
};

// One ZeroMQ socket on an event loop.
//
// ZMQ_FD is edge-triggered in disguise: it becomes readable when ZeroMQ's threads queue commands
// for the socket, and any call on the socket (a send as well) consumes them. So the events are read
// again after every send and every receive, until nothing is left to do.
class Socket {
 public:
  explicit Socket(EventLoop& loop) : loop_(loop) {}
  ~Socket() {
    if (fd_ >= 0) loop_.UnwatchFd(fd_);
    monitor_.reset();
    if (socket_ != nullptr) zmq_close(socket_);
    // Waits for the I/O thread: only then has it let go of the socket and of every frame.
    while (context_ != nullptr && zmq_ctx_term(context_) != 0 && zmq_errno() == EINTR) {
    }
  }

  absl::Status Open(int type, const std::string& address) {
    context_ = zmq_ctx_new();
    if (context_ == nullptr) return ZmqStatus("opening", address);
    socket_ = zmq_socket(context_, type);
    if (socket_ == nullptr) return ZmqStatus("opening", address);
    const int64_t frame_bytes_max = kMessageBytesMax;
    SH_RETURN_IF_ERROR(Set(ZMQ_MAXMSGSIZE, frame_bytes_max));
    for (const auto& [option, value] :
         std::initializer_list<std::pair<int, int>>{{ZMQ_LINGER, 0},
                                                    {ZMQ_IMMEDIATE, 1},
                                                    {ZMQ_SNDHWM, kQueueMessagesMax},
                                                    {ZMQ_RCVHWM, kQueueMessagesMax},
                                                    {ZMQ_HANDSHAKE_IVL, kHandshakeMs},
                                                    {ZMQ_HEARTBEAT_IVL, kHeartbeatMs},
                                                    {ZMQ_HEARTBEAT_TIMEOUT, kHeartbeatTimeoutMs},
                                                    {ZMQ_HEARTBEAT_TTL, kHeartbeatTimeoutMs},
                                                    {ZMQ_RECONNECT_IVL, kReconnectMs},
                                                    {ZMQ_RECONNECT_IVL_MAX, kReconnectMaxMs}}) {
      SH_RETURN_IF_ERROR(Set(option, value));
    }
    size_t size = sizeof(fd_);
    if (zmq_getsockopt(socket_, ZMQ_FD, &fd_, &size) != 0) return ZmqStatus("opening", address);
    return absl::OkStatus();
  }

  template <typename T>
  absl::Status Set(int option, T value) {
    if (zmq_setsockopt(socket_, option, &value, sizeof(value)) == 0) return absl::OkStatus();
    return ZmqStatus("setting socket option", absl::StrCat(option));
  }

  // `work` does one bounded turn, given the socket's events, and returns whether it did anything.
  void Watch(absl::AnyInvocable<bool(int events)> work) {
    work_ = std::move(work);
    loop_.WatchFd(fd_, [this] { Turn(); });
  }

  // To be called after anything that touched the socket outside a turn: runs a turn soon if one is
  // due.
  void AfterUse() {
    if (in_turn_ || turn_posted_ || (Events() & interest_) == 0) return;
    PostTurn();
  }
  void PostTurn() {
    if (turn_posted_) return;
    turn_posted_ = true;
    loop_.Post([this, alive = std::weak_ptr<bool>(alive_)] {
      if (alive.expired()) return;
      turn_posted_ = false;
      Turn();
    });
  }
  // Which of ZMQ_POLLIN and ZMQ_POLLOUT there is work for.
  void set_interest(int interest) { interest_ = interest; }

  // As ConnectionMonitor. REQUIRES: before Connect.
  absl::Status WatchConnections(absl::AnyInvocable<void(bool)> changed);
  absl::Status Bind(const std::string& address) {
    if (zmq_bind(socket_, address.c_str()) == 0) return absl::OkStatus();
    return ZmqStatus("binding", address);
  }
  absl::Status Connect(const std::string& address) {
    if (zmq_connect(socket_, address.c_str()) == 0) return absl::OkStatus();
    return ZmqStatus("connecting to", address);
  }

  // ResourceExhausted or Unavailable: nothing of the message was queued.
  absl::Status SendFrames(const Frames& frames, const std::shared_ptr<BytesInFlight>& in_flight);
  absl::Status SendFrame(Message& message, bool more) {
    if (zmq_msg_send(message.get(), socket_, ZMQ_DONTWAIT | (more ? ZMQ_SNDMORE : 0)) >= 0) {
      return absl::OkStatus();
    }
    switch (zmq_errno()) {
      case EAGAIN:
        return absl::ResourceExhaustedError("the peer's queue is full");
      case EHOSTUNREACH:
        return absl::UnavailableError("the peer is gone");
      default:
        return absl::InternalError(absl::StrCat("sending: ", zmq_strerror(zmq_errno())));
    }
  }

  // One message, or false when there is none. Messages over the limits come back empty.
  bool Receive(Frames* frames);

 private:
  int Events() {
    int events = 0;
    size_t size = sizeof(events);
    if (zmq_getsockopt(socket_, ZMQ_EVENTS, &events, &size) != 0) return 0;
    return events;
  }
  void Turn() {
    if (in_turn_) return;
    in_turn_ = true;
    const bool worked = work_(Events());
    in_turn_ = false;
    if (worked || (Events() & interest_) != 0) PostTurn();
  }

  EventLoop& loop_;
  void* context_ = nullptr;
  void* socket_ = nullptr;
  int fd_ = -1;
  absl::AnyInvocable<bool(int)> work_;
  int interest_ = 0;
  bool in_turn_ = false;
  bool turn_posted_ = false;
  std::optional<ConnectionMonitor> monitor_;  // of a client
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

absl::Status Socket::WatchConnections(absl::AnyInvocable<void(bool)> changed) {
  monitor_.emplace(loop_, std::move(changed));
  return monitor_->Watch(context_, socket_);
}

absl::Status Socket::SendFrames(const Frames& frames,
                                const std::shared_ptr<BytesInFlight>& in_flight) {
  for (size_t i = 0; i < frames.size(); ++i) {
    const bool copied = frames[i].size() <= kCopyBytesMax;
    Message message = copied ? Message(frames[i].view()) : Message(frames[i], in_flight);
    SH_RETURN_IF_ERROR(SendFrame(message, /*more=*/i + 1 < frames.size()));
  }
  return absl::OkStatus();
}

bool Socket::Receive(Frames* frames) {
  frames->clear();
  uint64_t bytes = 0;
  size_t count = 0;
  for (bool more = true; more;) {
    Message part;
    if (zmq_msg_recv(part.get(), socket_, ZMQ_DONTWAIT) < 0) {
      frames->clear();
      return false;
    }
    more = part.more();
    bytes += part.bytes().size();
    ++count;
    // One frame more than may be sent: the ROUTER puts the connection in front.
    if (bytes > kMessageBytesMax + kCopyBytesMax || count > kFramesMax + 1) {
      frames->clear();
      continue;
    }
    frames->push_back(part.TakeFrame());
  }
  if (frames->size() != count) frames->clear();
  return true;
}

class ZmqServer final : public ServerChannel {
 public:
  ZmqServer(EventLoop& loop, std::string address)
      : address_(std::move(address)), socket_(std::make_unique<Socket>(loop)) {}

  ~ZmqServer() override {
    socket_.reset();
    // ZeroMQ leaves the file. The lock is still held, so it is nobody else's.
    if (bound_) unlink(path_.c_str());
  }

  absl::Status Open(const std::string& path, uid_t uid);
  void SetReceiver(Receiver receiver) override {
    receiver_ = std::move(receiver);
    socket_->set_interest(ZMQ_POLLIN);
    socket_->PostTurn();
  }
  absl::Status Send(absl::string_view connection, Frames frames) override;
  std::string address() const override { return address_; }

 private:
  bool Turn(int events);
  std::shared_ptr<BytesInFlight> InFlightOf(absl::string_view connection);

  std::string address_;
  std::string path_;
  std::string user_;
  std::unique_ptr<FileLock> lock_;
  bool bound_ = false;
  std::unique_ptr<Socket> socket_;
  Receiver receiver_;
  std::map<std::string, std::shared_ptr<BytesInFlight>, std::less<>> in_flight_;
};

absl::Status ZmqServer::Open(const std::string& path, uid_t uid) {
  path_ = path;
  user_ = absl::StrCat("uid/", uid);
  SH_RETURN_IF_ERROR(CheckPrivateFolder(path));
  auto lock = FileLock::Acquire(absl::StrCat(path, ".lock"), FileLock::Mode::kExclusive);
  if (absl::IsFailedPrecondition(lock.status())) {
    return absl::FailedPreconditionError(
        absl::StrCat("socket ", path, " is in use by another process"));
  }
  SH_RETURN_IF_ERROR(lock);
  lock_ = *std::move(lock);
  SH_RETURN_IF_ERROR(socket_->Open(ZMQ_ROUTER, address_));
  SH_RETURN_IF_ERROR(socket_->Set(ZMQ_ROUTER_MANDATORY, 1));
  SH_RETURN_IF_ERROR(socket_->Set(ZMQ_IPC_FILTER_UID, uid));
  SH_RETURN_IF_ERROR(socket_->Bind(address_));
  bound_ = true;
  if (chmod(path.c_str(), 0600) != 0) return ErrnoStatus("chmod", path);
  socket_->Watch([this](int events) { return Turn(events); });
  return absl::OkStatus();
}

bool ZmqServer::Turn(int events) {
  if (!receiver_ || (events & ZMQ_POLLIN) == 0) return false;
  Frames frames;
  for (int i = 0; i < kMessagesPerTurnMax; ++i) {
    if (!socket_->Receive(&frames)) return false;
    if (frames.size() < 2) continue;  // over a limit, or nothing behind the connection
    const Peer peer{std::string(frames[0].view()), user_};
    frames.erase(frames.begin());
    receiver_(peer, std::move(frames));
  }
  return true;
}

std::shared_ptr<BytesInFlight> ZmqServer::InFlightOf(absl::string_view connection) {
  auto it = in_flight_.find(std::string(connection));
  if (it != in_flight_.end()) return it->second;
  if (in_flight_.size() >= kPeersCountedMax) {
    std::erase_if(in_flight_, [](const auto& entry) { return entry.second->load() == 0; });
  }
  return in_flight_[std::string(connection)] = std::make_shared<BytesInFlight>(0);
}

absl::Status ZmqServer::Send(absl::string_view connection, Frames frames) {
  SH_RETURN_IF_ERROR(CheckMessageSize(frames));
  const std::shared_ptr<BytesInFlight> in_flight = InFlightOf(connection);
  if (in_flight->load() + MessageBytes(frames) > kQueueBytesMax) {
    return absl::ResourceExhaustedError("the peer's queue is full");
  }
  Message to(connection);
  absl::Status status = socket_->SendFrame(to, /*more=*/true);
  if (status.ok()) status = socket_->SendFrames(frames, in_flight);
  socket_->AfterUse();
  return status;
}

class ZmqClient final : public ClientChannel {
 public:
  explicit ZmqClient(EventLoop& loop) : socket_(loop) {}

  absl::Status Open(const std::string& address) {
    SH_RETURN_IF_ERROR(socket_.Open(ZMQ_DEALER, address));
    SH_RETURN_IF_ERROR(socket_.WatchConnections([this](bool made) {
      connection_ = made ? ++connections_made_ : 0;
      if (made && connected_) connected_();
    }));
    SH_RETURN_IF_ERROR(socket_.Connect(address));
    socket_.Watch([this](int events) { return Turn(events); });
    return absl::OkStatus();
  }
  void SetReceiver(Receiver receiver) override {
    receiver_ = std::move(receiver);
    UpdateInterest();
    socket_.PostTurn();
  }
  absl::Status Send(Frames frames) override;
  uint64_t connection() const override { return connection_; }
  void SetConnected(absl::AnyInvocable<void()> connected) override {
    connected_ = std::move(connected);
  }

 private:
  bool Turn(int events);
  bool SendWaiting();
  void UpdateInterest() {
    socket_.set_interest((receiver_ ? ZMQ_POLLIN : 0) | (waiting_.empty() ? 0 : ZMQ_POLLOUT));
  }

  Receiver receiver_;
  absl::AnyInvocable<void()> connected_;
  uint64_t connection_ = 0;
  uint64_t connections_made_ = 0;
  std::deque<Frames> waiting_;  // for a connection, or for room in its queue
  uint64_t waiting_bytes_ = 0;
  std::shared_ptr<BytesInFlight> in_flight_ = std::make_shared<BytesInFlight>(0);
  Socket socket_;  // destroyed first: it calls back into the others
};

absl::Status ZmqClient::Send(Frames frames) {
  SH_RETURN_IF_ERROR(CheckMessageSize(frames));
  const uint64_t bytes = MessageBytes(frames);
  if (waiting_.size() >= kQueueMessagesMax ||
      waiting_bytes_ + in_flight_->load() + bytes > kQueueBytesMax) {
    return absl::ResourceExhaustedError("the queue to the server is full");
  }
  waiting_.push_back(std::move(frames));
  waiting_bytes_ += bytes;
  SendWaiting();
  UpdateInterest();
  socket_.AfterUse();
  return absl::OkStatus();
}

bool ZmqClient::SendWaiting() {
  bool sent = false;
  while (!waiting_.empty()) {
    // The first frame decides: a DEALER takes the rest of a message whose first frame it took.
    if (!socket_.SendFrames(waiting_.front(), in_flight_).ok()) break;
    waiting_bytes_ -= MessageBytes(waiting_.front());
    waiting_.pop_front();
    sent = true;
  }
  return sent;
}

bool ZmqClient::Turn(int events) {
  bool worked = false;
  if ((events & ZMQ_POLLOUT) != 0 && !waiting_.empty()) worked = SendWaiting();
  UpdateInterest();
  if (!receiver_ || (events & ZMQ_POLLIN) == 0) return worked;
  Frames frames;
  for (int i = 0; i < kMessagesPerTurnMax; ++i) {
    if (!socket_.Receive(&frames)) return worked;
    if (!frames.empty()) receiver_(std::move(frames));
  }
  return true;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ServerChannel>> MakeZmqServerChannel(
    EventLoop& loop, const std::string& address, const ZmqServerOptions& options) {
  SH_ASSIGN_OR_RETURN(const std::string path, ParseIpcAddress(address));
  auto server = std::make_unique<ZmqServer>(loop, address);
  SH_RETURN_IF_ERROR(server->Open(path, options.uid.value_or(geteuid())));
  return server;
}

absl::StatusOr<std::unique_ptr<ClientChannel>> MakeZmqClientChannel(EventLoop& loop,
                                                                    const std::string& address) {
  SH_ASSIGN_OR_RETURN(const std::string path, ParseIpcAddress(address));
  SH_RETURN_IF_ERROR(CheckPrivateFolder(path));
  auto client = std::make_unique<ZmqClient>(loop);
  SH_RETURN_IF_ERROR(client->Open(address));
  return client;
}

}  // namespace stillhouse

#include "transport/memory_channel.h"

#include <algorithm>
#include <deque>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace stillhouse {
namespace {

struct Waiting {
  absl::Duration due;
  Frames frames;
};

// One direction of a connection.
struct Link {
  std::deque<Waiting> queue;
  uint64_t bytes = 0;
  absl::Duration last_due = -absl::InfiniteDuration();

  absl::Status CheckRoom(const Frames& frames) const {
    if (queue.size() < kQueueMessagesMax && bytes + MessageBytes(frames) <= kQueueBytesMax) {
      return absl::OkStatus();
    }
    return absl::ResourceExhaustedError("the peer's queue is full");
  }
};

struct Connection {
  uint64_t number = 0;
  std::string id;
  std::string user;
  bool open = true;
  Link to_server, to_client;
};

}  // namespace

class MemoryNetwork::Core : public std::enable_shared_from_this<Core> {
 public:
  explicit Core(Executor& executor) : executor_(executor) {}

  void Enqueue(const std::string& address, const std::shared_ptr<Connection>& connection,
               bool to_server, const Frames& frames);
  // Arranges one Deliver, which delivers at most one message: each message brings its own.
  void Wake(const std::string& address, const std::shared_ptr<Connection>& connection,
            bool to_server, absl::Duration delay);
  void Deliver(const std::string& address, const std::shared_ptr<Connection>& connection,
               bool to_server);
  void ConnectAll(const std::string& address);
  void Connect(Client& client);
  void Disconnect(const std::string& address);

  Executor& executor_;
  Fate fate_;
  uint64_t connections_made_ = 0;
  std::map<std::string, Server*> servers_;               // by address
  std::map<std::string, std::vector<Client*>> clients_;  // by address, in order of creation
};

class MemoryNetwork::Server final : public ServerChannel {
 public:
  Server(std::shared_ptr<Core> core, std::string address)
      : core_(std::move(core)), address_(std::move(address)) {
    core_->servers_[address_] = this;
  }
  ~Server() override {
    core_->servers_.erase(address_);
    core_->Disconnect(address_);
  }
  void SetReceiver(Receiver receiver) override {
    receiver_ = std::move(receiver);
    for (const auto& [id, connection] : connections_) {
      for (size_t i = 0; i < connection->to_server.queue.size(); ++i) {
        core_->Wake(address_, connection, /*to_server=*/true, absl::ZeroDuration());
      }
    }
  }
  absl::Status Send(absl::string_view connection, Frames frames) override {
    SH_RETURN_IF_ERROR(CheckMessageSize(frames));
    auto it = connections_.find(std::string(connection));
    if (it == connections_.end()) return absl::UnavailableError("the peer is gone");
    SH_RETURN_IF_ERROR(it->second->to_client.CheckRoom(frames));
    core_->Enqueue(address_, it->second, /*to_server=*/false, frames);
    return absl::OkStatus();
  }
  std::string address() const override { return address_; }

  std::shared_ptr<Core> core_;
  std::string address_;
  Receiver receiver_;
  std::map<std::string, std::shared_ptr<Connection>> connections_;
};

class MemoryNetwork::Client final : public ClientChannel {
 public:
  Client(std::shared_ptr<Core> core, std::string address, std::string user)
      : core_(std::move(core)), address_(std::move(address)), user_(std::move(user)) {
    core_->clients_[address_].push_back(this);
    core_->Connect(*this);
  }
  ~Client() override {
    std::erase(core_->clients_[address_], this);
    if (connection_ == nullptr) return;
    connection_->open = false;
    core_->servers_.at(address_)->connections_.erase(connection_->id);
  }
  void SetReceiver(Receiver receiver) override {
    receiver_ = std::move(receiver);
    if (connection_ == nullptr) return;
    for (size_t i = 0; i < connection_->to_client.queue.size(); ++i) {
      core_->Wake(address_, connection_, /*to_server=*/false, absl::ZeroDuration());
    }
  }
  absl::Status Send(Frames frames) override {
    SH_RETURN_IF_ERROR(CheckMessageSize(frames));
    if (connection_ != nullptr) {
      SH_RETURN_IF_ERROR(connection_->to_server.CheckRoom(frames));
      core_->Enqueue(address_, connection_, /*to_server=*/true, frames);
      return absl::OkStatus();
    }
    SH_RETURN_IF_ERROR(unconnected_.CheckRoom(frames));
    unconnected_.bytes += MessageBytes(frames);
    unconnected_.queue.push_back({absl::ZeroDuration(), std::move(frames)});
    return absl::OkStatus();
  }
  uint64_t connection() const override { return connection_ == nullptr ? 0 : connection_->number; }
  void SetConnected(absl::AnyInvocable<void()> connected) override {
    connected_ = std::move(connected);
  }
  void PostConnected() {
    core_->executor_.Post([this, alive = std::weak_ptr<bool>(alive_)] {
      if (!alive.expired() && connected_) connected_();
    });
  }

  std::shared_ptr<Core> core_;
  std::string address_;
  std::string user_;
  Receiver receiver_;
  absl::AnyInvocable<void()> connected_;
  std::shared_ptr<Connection> connection_;  // null while no server is there
  Link unconnected_;                        // what waits for one
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

void MemoryNetwork::Core::Enqueue(const std::string& address,
                                  const std::shared_ptr<Connection>& connection, bool to_server,
                                  const Frames& frames) {
  std::vector<absl::Duration> delays = {absl::ZeroDuration()};
  if (fate_) delays = fate_({address, to_server, frames});
  Link& link = to_server ? connection->to_server : connection->to_client;
  for (const absl::Duration delay : delays) {
    const absl::Duration now = executor_.clock().Now();
    const absl::Duration due = std::max(now + delay, link.last_due);
    link.last_due = due;
    link.queue.push_back({due, frames});
    link.bytes += MessageBytes(frames);
    Wake(address, connection, to_server, due - now);
  }
}

void MemoryNetwork::Core::Wake(const std::string& address,
                               const std::shared_ptr<Connection>& connection, bool to_server,
                               absl::Duration delay) {
  Task task = [weak = weak_from_this(), address, connection, to_server] {
    if (auto core = weak.lock()) core->Deliver(address, connection, to_server);
  };
  if (delay <= absl::ZeroDuration()) {
    executor_.Post(std::move(task));
  } else {
    executor_.PostAfter(delay, std::move(task));
  }
}

void MemoryNetwork::Core::Deliver(const std::string& address,
                                  const std::shared_ptr<Connection>& connection, bool to_server) {
  Link& link = to_server ? connection->to_server : connection->to_client;
  if (!connection->open || link.queue.empty()) return;
  if (link.queue.front().due > executor_.clock().Now()) return;
  Server& server = *servers_.at(address);
  Client* client = nullptr;
  for (Client* candidate : clients_[address]) {
    if (candidate->connection_ == connection) client = candidate;
  }
  SH_CHECK(client != nullptr, "an open connection has a client");
  if (to_server ? !server.receiver_ : !client->receiver_) return;  // waits for SetReceiver
  Frames frames = std::move(link.queue.front().frames);
  link.queue.pop_front();
  link.bytes -= MessageBytes(frames);
  if (to_server) {
    server.receiver_(Peer{connection->id, connection->user}, std::move(frames));
  } else {
    client->receiver_(std::move(frames));
  }
}

void MemoryNetwork::Core::Connect(Client& client) {
  auto it = servers_.find(client.address_);
  if (it == servers_.end()) return;
  client.connection_ = std::make_shared<Connection>();
  client.connection_->number = ++connections_made_;
  client.connection_->id = absl::StrCat("memory-", client.connection_->number);
  client.connection_->user = client.user_;
  it->second->connections_[client.connection_->id] = client.connection_;
  Link waiting = std::move(client.unconnected_);
  client.unconnected_ = Link();
  for (Waiting& message : waiting.queue) {
    Enqueue(client.address_, client.connection_, /*to_server=*/true, message.frames);
  }
  client.PostConnected();
}

void MemoryNetwork::Core::ConnectAll(const std::string& address) {
  for (Client* client : clients_[address]) Connect(*client);
}

void MemoryNetwork::Core::Disconnect(const std::string& address) {
  for (Client* client : clients_[address]) {
    if (client->connection_ != nullptr) client->connection_->open = false;
    client->connection_ = nullptr;
  }
  auto it = servers_.find(address);
  if (it != servers_.end()) it->second->connections_.clear();
}

MemoryNetwork::MemoryNetwork(Executor& executor) : core_(std::make_shared<Core>(executor)) {}
MemoryNetwork::~MemoryNetwork() = default;

void MemoryNetwork::SetFate(Fate fate) { core_->fate_ = std::move(fate); }

void MemoryNetwork::CutConnections(const std::string& address) {
  core_->Disconnect(address);
  core_->ConnectAll(address);
}

absl::StatusOr<std::unique_ptr<ServerChannel>> MemoryNetwork::MakeServer(
    const std::string& address) {
  if (core_->servers_.contains(address)) {
    return absl::FailedPreconditionError(absl::StrCat("address ", address, " is in use"));
  }
  auto server = std::make_unique<Server>(core_, address);
  core_->ConnectAll(address);
  return server;
}

std::unique_ptr<ClientChannel> MemoryNetwork::MakeClient(const std::string& address,
                                                         const std::string& user) {
  return std::make_unique<Client>(core_, address, user);
}

}  // namespace stillhouse

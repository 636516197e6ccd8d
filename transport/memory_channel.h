// MemoryNetwork: channels inside one process, for tests and simulation, as strict as the real ones.
//
// Owner: a test or the simulator; must outlive its channels. Threads: everything happens on
// `executor`. Ordering: messages of one connection and direction arrive in the order sent, whatever
// each one's delay. Nothing is ever delivered inside a Send.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/executor.h"
#include "transport/channel.h"

namespace stillhouse {

class MemoryNetwork {
 public:
  struct Delivery {
    const std::string& address;  // the server's
    bool to_server;
    const Frames& frames;
  };
  // When, from now, each copy of a message arrives: {0} is a perfect network, {} loses it.
  using Fate = absl::AnyInvocable<std::vector<absl::Duration>(const Delivery&)>;

  explicit MemoryNetwork(Executor& executor);
  ~MemoryNetwork();

  void SetFate(Fate fate);  // for every message from now on; null: a perfect network
  // Ends every connection of the server, as a reset network would; clients connect again at once.
  void CutConnections(const std::string& address);

  // FailedPrecondition when a living server has the address.
  absl::StatusOr<std::unique_ptr<ServerChannel>> MakeServer(const std::string& address);
  // `user` is what the server sees as Peer::user.
  std::unique_ptr<ClientChannel> MakeClient(const std::string& address,
                                            const std::string& user = "uid/0");

 private:
  class Core;
  class Server;
  class Client;
  std::shared_ptr<Core> core_;
};

}  // namespace stillhouse

// Finding a coordinator and asking it something.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/command_line.h"
#include "common/event_loop.h"
#include "transport/channel.h"
#include "transport/rpc.h"
#include "worker/process.h"

namespace stillhouse {

// A coordinator and the coordinator.json it wrote.
struct Coordinator {
  std::string path;
  CoordinatorFile file;
};
bool IsAlive(const CoordinatorFile& file);

// Which coordinator a verb means.
struct CoordinatorChoice {
  std::string file;    // --coordinator
  std::string recipe;  // --recipe
};
void AddCoordinatorOptions(Command verb, CoordinatorChoice* choice);

// Where `coordinatorctl local` keeps its state of an output folder.
std::string StateFolder(const std::string& output);
std::string CoordinatorFilePath(const std::string& state_folder);

// The state folder that `choice` names, or that of the only live coordinator of this user.
// Unavailable (saying so) when none is alive; FailedPrecondition, listing them, when there are
// several.
absl::StatusOr<std::string> FindStateFolder(const CoordinatorChoice& choice);
// The same, and the coordinator in it is alive: Unavailable if not.
absl::StatusOr<Coordinator> FindCoordinator(const CoordinatorChoice& choice);

// Notes, in the user's cache folder, that a coordinator lives there; gone with the object. A note
// whose coordinator is dead is ignored, and removed by the next reader if its writer is dead, too.
class LiveNote {
 public:
  static absl::StatusOr<std::unique_ptr<LiveNote>> Write(const std::string& coordinator_file);
  ~LiveNote();

 private:
  explicit LiveNote(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

// A channel and its calls on one loop.
struct Connection {
  std::unique_ptr<ClientChannel> channel;
  std::unique_ptr<RpcClient> rpc;
};
// `loop` must outlive the result.
absl::StatusOr<std::unique_ptr<Connection>> Connect(EventLoop& loop, const std::string& address);

// One question, by a verb that has nothing else to do. Unavailable when nobody answers.
absl::StatusOr<std::string> AskCoordinator(const Coordinator& coordinator,
                                           const std::string& method, const std::string& body,
                                           absl::Duration deadline = absl::Seconds(10));

}  // namespace stillhouse

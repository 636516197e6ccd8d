#include "coordinator/ctl/connection.h"

#include <errno.h>
#include <signal.h>
#include <unistd.h>

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/command_line.h"
#include "common/digest.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/model_files.h"
#include "recipe/recipe.h"
#include "transport/zmq_channel.h"

namespace stillhouse {
namespace {

constexpr uint64_t kNoteBytesMax = 64 << 10;

bool IsRunning(int64_t pid) {
  return pid > 0 && (kill(static_cast<pid_t>(pid), 0) == 0 || errno == EPERM);
}

std::string NotesFolder() { return JoinPath(UserCacheFolder(), "coordinators"); }

// State folders of the coordinators of this user that are alive.
std::vector<std::string> LiveStateFolders() {
  std::vector<std::string> live;
  const absl::StatusOr<std::vector<std::string>> names = ListFolder(NotesFolder());
  if (!names.ok()) return live;
  for (const std::string& name : *names) {
    const std::string note = JoinPath(NotesFolder(), name);
    const absl::StatusOr<std::string> path = ReadFile(note, kNoteBytesMax);
    if (!path.ok()) continue;
    const std::vector<std::string> lines = absl::StrSplit(*path, '\n');
    const std::string& file_path = lines[0];
    const absl::StatusOr<CoordinatorFile> file = ReadCoordinatorFile(file_path);
    if (file.ok() && IsAlive(*file)) {
      live.push_back(FolderOf(file_path));
    } else if (int64_t writer = 0;
               lines.size() < 2 || !absl::SimpleAtoi(lines[1], &writer) || !IsRunning(writer)) {
      unlink(note.c_str());  // else its supervisor is starting it again
    }
  }
  return live;
}

}  // namespace

bool IsAlive(const CoordinatorFile& file) { return IsRunning(file.pid); }

void AddCoordinatorOptions(Command verb, CoordinatorChoice* choice) {
  const CommandOption file =
      verb.AddOption("--coordinator", &choice->file,
                     "the coordinator meant: its coordinator.json, or the folder of that")
          .ValueName("PATH");
  verb.AddOption("--recipe", &choice->recipe, "the recipe whose coordinator is meant")
      .ValueName("FILE")
      .Excludes(file);
}

std::string StateFolder(const std::string& output) { return JoinPath(output, ".stillhouse"); }

std::string CoordinatorFilePath(const std::string& state_folder) {
  return JoinPath(state_folder, "coordinator.json");
}

// What `--coordinator` names: the file itself, the folder it lies in, or the recipe's output.
std::string CoordinatorFileOf(const std::string& named) {
  for (const std::string& folder : {named, StateFolder(named)}) {
    if (PathExists(CoordinatorFilePath(folder))) return CoordinatorFilePath(folder);
  }
  return named;
}

absl::StatusOr<std::string> FindStateFolder(const CoordinatorChoice& choice) {
  if (!choice.file.empty()) return FolderOf(CoordinatorFileOf(choice.file));
  if (!choice.recipe.empty()) {
    SH_ASSIGN_OR_RETURN(const Recipe recipe, ReadRecipe(choice.recipe));
    return StateFolder(recipe.output);
  }
  const std::vector<std::string> live = LiveStateFolders();
  if (live.empty()) {
    return absl::UnavailableError(
        "no coordinator of yours is alive; name a recipe with --recipe, or start one with "
        "`coordinatorctl local RECIPE`");
  }
  if (live.size() > 1) {
    return absl::FailedPreconditionError(absl::StrCat(
        "several coordinators of yours are alive; say which with --coordinator or --recipe: ",
        absl::StrJoin(live, ", ")));
  }
  return live.front();
}

absl::StatusOr<Coordinator> FindCoordinator(const CoordinatorChoice& choice) {
  SH_ASSIGN_OR_RETURN(const std::string folder, FindStateFolder(choice));
  const std::string path =
      choice.file.empty() ? CoordinatorFilePath(folder) : CoordinatorFileOf(choice.file);
  absl::StatusOr<CoordinatorFile> file = ReadCoordinatorFile(path);
  if (file.ok() && IsAlive(*file)) return Coordinator{path, *std::move(file)};
  if (!file.ok() && !absl::IsNotFound(file.status())) return file.status();
  return absl::UnavailableError(absl::StrCat("no coordinator is alive in ", folder,
                                             "; start one with `coordinatorctl local RECIPE`"));
}

absl::StatusOr<std::unique_ptr<LiveNote>> LiveNote::Write(const std::string& coordinator_file) {
  SH_RETURN_IF_ERROR(MakeFolders(NotesFolder(), 0700));
  std::string path = JoinPath(NotesFolder(), Sha256Of(coordinator_file).Hex().substr(0, 16));
  SH_RETURN_IF_ERROR(
      WriteFileAtomically(path, absl::StrCat(coordinator_file, "\n", getpid(), "\n"), 0600));
  return std::unique_ptr<LiveNote>(new LiveNote(std::move(path)));
}

LiveNote::~LiveNote() { unlink(path_.c_str()); }

absl::StatusOr<std::unique_ptr<Connection>> Connect(EventLoop& loop, const std::string& address) {
  auto connection = std::make_unique<Connection>();
  SH_ASSIGN_OR_RETURN(connection->channel, MakeZmqClientChannel(loop, address));
  connection->rpc = MakeRpcClient(*connection->channel, loop);
  return connection;
}

absl::StatusOr<std::string> AskCoordinator(const Coordinator& coordinator,
                                           const std::string& method, const std::string& body,
                                           absl::Duration deadline) {
  EventLoop loop;
  SH_ASSIGN_OR_RETURN(const std::unique_ptr<Connection> connection,
                      Connect(loop, coordinator.file.address));
  absl::StatusOr<std::string> answer = absl::UnknownError("no answer");
  connection->rpc->Call(method, {.body = body, .attachments = {}}, {.deadline = deadline},
                        [&](absl::StatusOr<RpcMessage> message) {
                          if (message.ok()) {
                            answer = std::move(message->body);
                          } else {
                            answer = message.status();
                          }
                          loop.Stop();
                        });
  loop.Run();
  if (absl::IsDeadlineExceeded(answer.status())) {
    return absl::UnavailableError(absl::StrCat("the coordinator of ", coordinator.path,
                                               " (process ", coordinator.file.pid,
                                               ") does not answer"));
  }
  return answer;
}

}  // namespace stillhouse

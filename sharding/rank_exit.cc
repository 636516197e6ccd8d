#include "sharding/rank_exit.h"

#include <unistd.h>

#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/file.h"
#include "common/log.h"
#include "common/status.h"

namespace stillhouse {
namespace {

constexpr absl::string_view kMagic = "stillhouse rank exit 2\n";
constexpr uint64_t kBytesMax = 64 << 10;

std::string PathOf(const std::string& folder, int rank) {
  return JoinPath(folder, absl::StrCat("rank-", rank, ".exit"));
}

bool TellsOfAPeer(const absl::Status& status) {
  return absl::IsAborted(status) || absl::IsDeadlineExceeded(status) || absl::IsUnavailable(status);
}

}  // namespace

absl::Status WriteRankExit(const std::string& folder, int rank, const RankExit& exit) {
  const absl::string_view message = exit.status.message().substr(0, kBytesMax / 2);
  return WriteFileAtomically(PathOf(folder, rank),
                             absl::StrCat(kMagic, static_cast<int>(exit.status.code()), " ",
                                          exit.code, " ", message.size(), "\n", message));
}

absl::StatusOr<RankExit> ReadRankExit(const std::string& folder, int rank) {
  const std::string path = PathOf(folder, rank);
  SH_ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path, kBytesMax));
  absl::string_view rest = bytes;
  const absl::Status damaged = absl::DataLossError(absl::StrCat(path, ": no rank's exit"));
  if (!absl::ConsumePrefix(&rest, kMagic)) return damaged;
  const std::vector<absl::string_view> head_and_message =
      absl::StrSplit(rest, absl::MaxSplits('\n', 1));
  if (head_and_message.size() != 2) return damaged;
  const std::vector<absl::string_view> numbers = absl::StrSplit(head_and_message[0], ' ');
  int status = 0;
  RankExit exit;
  uint64_t length = 0;
  if (numbers.size() != 3 || !absl::SimpleAtoi(numbers[0], &status) ||
      !absl::SimpleAtoi(numbers[1], &exit.code) || !absl::SimpleAtoi(numbers[2], &length) ||
      length != head_and_message[1].size() || status < 0 ||
      status > static_cast<int>(absl::StatusCode::kUnauthenticated) || exit.code < 0 ||
      exit.code > 255) {
    return damaged;
  }
  exit.status = absl::Status(static_cast<absl::StatusCode>(status), head_and_message[1]);
  return exit;
}

RankExit StepExit(const std::string& folder, int ranks) {
  RankExit own, of_a_peer;
  std::vector<int> silent;
  for (int rank = 0; rank < ranks; ++rank) {
    absl::StatusOr<RankExit> exit = ReadRankExit(folder, rank);
    if (absl::IsNotFound(exit.status())) {
      silent.push_back(rank);
      continue;
    }
    if (!exit.ok()) exit = RankExit{exit.status(), ExitCodeFor(exit.status())};
    RankExit& kind = TellsOfAPeer(exit->status) ? of_a_peer : own;
    if (kind.status.ok() && !exit->status.ok()) {
      kind = {Annotate(exit->status, absl::StrCat("rank ", rank)), exit->code};
    }
  }
  if (!own.status.ok()) return own;
  if (!of_a_peer.status.ok()) return of_a_peer;
  if (silent.empty()) return own;
  const absl::Status gone = absl::UnavailableError(
      absl::StrCat("rank ", absl::StrJoin(silent, ", "), " ended without a word"));
  return {gone, ExitCodeFor(gone)};
}

void LeaveWithRankExit(const std::string& folder, int rank, const RankExit& exit) {
  const absl::Status written = WriteRankExit(folder, rank, exit);
  if (!written.ok()) LogError(written.ToString());
  _exit(exit.code);
}

}  // namespace stillhouse

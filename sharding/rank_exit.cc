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

constexpr absl::string_view kMagic = "stillhouse rank exit 1\n";
constexpr uint64_t kBytesMax = 64 << 10;

std::string PathOf(const std::string& folder, int rank) {
  return JoinPath(folder, absl::StrCat("rank-", rank, ".exit"));
}

bool TellsOfAPeer(const absl::Status& status) {
  return absl::IsAborted(status) || absl::IsDeadlineExceeded(status);
}

}  // namespace

absl::Status WriteRankExit(const std::string& folder, int rank, const absl::Status& exit) {
  const absl::string_view message = exit.message().substr(0, kBytesMax / 2);
  return WriteFileAtomically(
      PathOf(folder, rank),
      absl::StrCat(kMagic, static_cast<int>(exit.code()), " ", message.size(), "\n", message));
}

absl::Status ReadRankExit(const std::string& folder, int rank, absl::Status* exit) {
  const std::string path = PathOf(folder, rank);
  SH_ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path, kBytesMax));
  absl::string_view rest = bytes;
  const absl::Status damaged = absl::DataLossError(absl::StrCat(path, ": no rank's exit"));
  if (!absl::ConsumePrefix(&rest, kMagic)) return damaged;
  const std::vector<absl::string_view> head_and_message =
      absl::StrSplit(rest, absl::MaxSplits('\n', 1));
  if (head_and_message.size() != 2) return damaged;
  const std::vector<absl::string_view> numbers = absl::StrSplit(head_and_message[0], ' ');
  int code = 0;
  uint64_t length = 0;
  if (numbers.size() != 2 || !absl::SimpleAtoi(numbers[0], &code) ||
      !absl::SimpleAtoi(numbers[1], &length) || length != head_and_message[1].size() || code < 0 ||
      code > static_cast<int>(absl::StatusCode::kUnauthenticated)) {
    return damaged;
  }
  *exit = absl::Status(static_cast<absl::StatusCode>(code), head_and_message[1]);
  return absl::OkStatus();
}

absl::Status StepExit(const std::string& folder, int ranks) {
  absl::Status own = absl::OkStatus(), of_a_peer = absl::OkStatus();
  std::vector<int> silent;
  for (int rank = 0; rank < ranks; ++rank) {
    absl::Status exit;
    const absl::Status read = ReadRankExit(folder, rank, &exit);
    if (absl::IsNotFound(read)) {
      silent.push_back(rank);
      continue;
    }
    if (!read.ok()) exit = read;
    absl::Status& kind = TellsOfAPeer(exit) ? of_a_peer : own;
    if (kind.ok()) kind = Annotate(exit, absl::StrCat("rank ", rank));
  }
  SH_RETURN_IF_ERROR(own);
  SH_RETURN_IF_ERROR(of_a_peer);
  if (silent.empty()) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("rank ", absl::StrJoin(silent, ", "), " ended without a word"));
}

void LeaveWithRankExit(const std::string& folder, int rank, const absl::Status& exit) {
  const absl::Status written = WriteRankExit(folder, rank, exit);
  if (!written.ok()) LogError(written.ToString());
  _exit(ExitCodeFor(exit));
}

}  // namespace stillhouse

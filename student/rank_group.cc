#include "student/rank_group.h"

#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/status.h"
#include "sharding/rank_values.h"
#include "student/run_stop.h"

namespace stillhouse {
namespace {

constexpr char kAgreed[] = "stillhouse/agreed";

absl::Status Agreed(absl::Status error) {
  error.SetPayload(kAgreed, absl::Cord("yes"));
  return error;
}

}  // namespace

std::string WordsOfStatus(const absl::Status& status) {
  return absl::StrCat(static_cast<int>(status.code()), " ", RunStopName(StopOf(status)), " ",
                      status.message());
}

absl::Status StatusOfWords(absl::string_view words) {
  const std::vector<absl::string_view> parts = absl::StrSplit(words, absl::MaxSplits(' ', 2));
  int code = 0;
  if (parts.size() != 3 || !absl::SimpleAtoi(parts[0], &code) || code < 0 ||
      code > static_cast<int>(absl::StatusCode::kUnauthenticated)) {
    return absl::InternalError(absl::StrCat("a rank said: ", words));
  }
  const std::optional<RunStop> stop = RunStopOfName(parts[1]);
  if (stop.has_value() && *stop != RunStop::kFinished && *stop != RunStop::kFailed) {
    return StopStatus(*stop, parts[2]);
  }
  return absl::Status(static_cast<absl::StatusCode>(code), parts[2]);
}

absl::Status RankGroup::Lost(const absl::Status& why) {
  lost_ = true;
  return StopStatus(RunStop::kRankLost, absl::StrCat("rank ", rank(), ": ", why.message()));
}

absl::StatusOr<std::vector<std::string>> RankGroup::Exchange(
    const absl::StatusOr<std::string>& mine) {
  if (ranks() == 1) {
    SH_RETURN_IF_ERROR(mine.status());
    return std::vector<std::string>{*mine};
  }
  // One letter says what follows.
  const std::string words =
      mine.ok() ? absl::StrCat("+", *mine) : absl::StrCat("-", WordsOfStatus(mine.status()));
  absl::StatusOr<std::vector<std::string>> all = GatherWords(*communicator_, words);
  if (!all.ok()) return Lost(all.status());
  for (int r = 0; r < ranks(); ++r) {
    std::string& said = (*all)[static_cast<size_t>(r)];
    if (said.empty() || said[0] != '+') {
      const absl::Status error = StatusOfWords(said.empty() ? said : said.substr(1));
      return Agreed(r == rank() || r == 0 ? error : Annotate(error, absl::StrCat("rank ", r)));
    }
    said.erase(0, 1);
  }
  return all;
}

absl::Status RankGroup::Agree(const absl::Status& mine) {
  if (mine.ok()) return Exchange(std::string()).status();
  return Exchange(mine).status();
}

absl::StatusOr<std::string> RankGroup::FromLeader(const absl::StatusOr<std::string>& of_leader) {
  const absl::StatusOr<std::string> nothing = std::string();
  SH_ASSIGN_OR_RETURN(std::vector<std::string> all, Exchange(leads() ? of_leader : nothing));
  return std::move(all[0]);
}

absl::Status RankGroup::FromLeader(const absl::Status& of_leader) {
  if (leads() && !of_leader.ok())
    return FromLeader(absl::StatusOr<std::string>(of_leader)).status();
  return FromLeader(absl::StatusOr<std::string>(std::string())).status();
}

absl::StatusOr<bool> RankGroup::AllReady(const absl::StatusOr<bool>& mine) {
  absl::StatusOr<std::string> word = std::string();
  if (!mine.ok()) word = mine.status();
  if (mine.ok() && !*mine) word = "later";
  SH_ASSIGN_OR_RETURN(const std::vector<std::string> all, Exchange(word));
  for (const std::string& said : all) {
    if (!said.empty()) return false;
  }
  return true;
}

absl::Status RankGroup::Sum(absl::Span<double> values) {
  if (ranks() == 1) return absl::OkStatus();
  const absl::Status summed = SumOverRanks(*communicator_, values);
  return summed.ok() ? summed : Lost(summed);
}

bool RankGroup::HasAgreedOn(const absl::Status& error) const {
  return ranks() == 1 || (!lost_ && error.GetPayload(kAgreed).has_value());
}

void RankGroup::GiveUp() {
  if (communicator_ != nullptr) communicator_->Abort();
  lost_ = ranks() > 1;
}

}  // namespace stillhouse

// RankGroup: how the ranks of a run come to the same decisions at the same place.
//
// Every rank calls the same functions in the same order. An error that any rank brings is returned
// on all of them (the lowest rank's, if there are several): all leave the same way, at the same
// step, and may still do things together, such as saving. Where the communicator itself fails, a
// rank is lost (RunStop kRankLost) and nothing can be done together any more.
//
// Owner: the run. Threads: one at a time, that of the communicator. With one rank nothing is sent.
// Waits for the other ranks have no deadline: one of them may be waiting for a teacher.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "sharding/communicator.h"

namespace stillhouse {

class RankGroup {
 public:
  // Null: one rank alone. `communicator` must outlive the group.
  explicit RankGroup(Communicator* communicator) : communicator_(communicator) {}

  int rank() const { return communicator_ == nullptr ? 0 : communicator_->rank(); }
  int ranks() const { return communicator_ == nullptr ? 1 : communicator_->size(); }
  bool leads() const { return rank() == 0; }
  bool lost() const { return lost_; }

  // OK if all ranks bring OK.
  absl::Status Agree(const absl::Status& mine);
  // What each rank brings, by rank.
  absl::StatusOr<std::vector<std::string>> Exchange(const absl::StatusOr<std::string>& mine);
  // What rank 0 brings; the others bring nothing.
  absl::StatusOr<std::string> FromLeader(const absl::StatusOr<std::string>& of_leader);
  absl::Status FromLeader(const absl::Status& of_leader);
  // Whether all ranks are ready.
  absl::StatusOr<bool> AllReady(const absl::StatusOr<bool>& mine);
  // Sums in fp64 in rank order.
  absl::Status Sum(absl::Span<double> values);

  // Whether every rank has this error, so that they can still leave together. Of one rank: always.
  bool HasAgreedOn(const absl::Status& error) const;
  // An error of the communicator, as the reason for a run to end.
  absl::Status Lost(const absl::Status& why);
  // Ends the waits of the others, for a rank that leaves alone.
  void GiveUp();

 private:
  Communicator* const communicator_;
  bool lost_ = false;
};

// A status with its RunStop, as words. For tests and other ranks.
std::string WordsOfStatus(const absl::Status& status);
absl::Status StatusOfWords(absl::string_view words);

}  // namespace stillhouse

// Small values that the ranks of a run tell each other: sums, words, decisions.
//
// Of the thread of the communicator; every rank calls the same in the same order. With one rank
// nothing is sent.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "sharding/communicator.h"

namespace stillhouse {

// values[i] becomes the sum over all ranks, in fp64 and in rank order: the same bits on every rank.
absl::Status SumOverRanks(Communicator& communicator, absl::Span<double> values);

// What each rank says, by rank. Waits without a deadline for the ranks to come, since one of them
// may be waiting for something that takes hours: only what follows is bound by the communicator's.
absl::StatusOr<std::vector<std::string>> GatherWords(Communicator& communicator,
                                                     absl::string_view mine);

// Until the collective is over, however long that takes, looking often at first.
absl::Status AwaitPatiently(Communicator::Pending pending);

}  // namespace stillhouse

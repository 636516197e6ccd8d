#include "sharding/rank_values.h"

#include <thread>

#include "common/mutex.h"
#include "common/status.h"
#include "sharding/keep_forever.h"

namespace stillhouse {
namespace {

constexpr int kLooksMax = 2000;
constexpr absl::Duration kRest = absl::Microseconds(200);

// One part for each rank, of these lengths, end to end.
std::vector<FlatRange> PartsOf(absl::Span<const int64_t> lengths) {
  std::vector<FlatRange> parts;
  size_t begin = 0;
  for (const int64_t length : lengths) {
    parts.push_back({begin, begin + static_cast<size_t>(length)});
    begin = parts.back().end;
  }
  return parts;
}

}  // namespace

absl::Status AwaitPatiently(Communicator::Pending pending) {
  SH_RETURN_IF_ERROR(pending.status());
  Mutex mutex;
  CondVar never;
  for (int looks = 0;; ++looks) {
    const absl::StatusOr<bool> done = (*pending)->Poll();
    if (!done.ok() || *done) return (*pending)->Wait();
    if (looks < kLooksMax) {
      std::this_thread::yield();
      continue;
    }
    MutexLock lock(mutex);
    never.WaitFor(mutex, kRest);
  }
}

absl::Status SumOverRanks(Communicator& communicator, absl::Span<double> values) {
  const auto ranks = static_cast<size_t>(communicator.size());
  const size_t n = values.size();
  if (ranks == 1 || n == 0) return absl::OkStatus();
  // As bits: a gather changes none of them.
  static_assert(sizeof(double) == 8);
  struct Room {
    std::vector<double> mine, all;
  };
  const auto room = std::make_shared<Room>();
  room->mine.assign(values.begin(), values.end());
  room->all.resize(ranks * n);
  Communicator::Pending gather =
      communicator.AllGather({room->mine.data(), n, DType::kI64},
                             PartsOf(std::vector<int64_t>(ranks, static_cast<int64_t>(n))),
                             {room->all.data(), room->all.size(), DType::kI64});
  const absl::Status gathered = gather.ok() ? (*gather)->Wait() : gather.status();
  if (!gathered.ok()) {
    KeepForever(room);
    return gathered;
  }
  for (size_t i = 0; i < n; ++i) {
    double sum = room->all[i];
    for (size_t rank = 1; rank < ranks; ++rank) sum += room->all[rank * n + i];
    values[i] = sum;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> GatherWords(Communicator& communicator,
                                                     absl::string_view mine) {
  const auto ranks = static_cast<size_t>(communicator.size());
  if (ranks == 1) return std::vector<std::string>{std::string(mine)};
  struct Room {
    int64_t length = 0;
    std::vector<int64_t> lengths;
    std::string mine, all;
  };
  const auto room = std::make_shared<Room>();
  room->length = static_cast<int64_t>(mine.size());
  room->lengths.resize(ranks);
  room->mine = std::string(mine);
  absl::Status gathered = AwaitPatiently(communicator.AllGather(
      {&room->length, 1, DType::kI64}, PartsOf(std::vector<int64_t>(ranks, 1)),
      {room->lengths.data(), ranks, DType::kI64}));
  std::vector<FlatRange> parts;
  if (gathered.ok()) {
    parts = PartsOf(room->lengths);
    room->all.resize(parts.back().end);
    Communicator::Pending gather =
        communicator.AllGather({room->mine.data(), room->mine.size(), DType::kU8}, parts,
                               {room->all.data(), room->all.size(), DType::kU8});
    gathered = gather.ok() ? (*gather)->Wait() : gather.status();
  }
  if (!gathered.ok()) {
    KeepForever(room);
    return gathered;
  }
  std::vector<std::string> words;
  for (const FlatRange& part : parts) words.push_back(room->all.substr(part.begin, part.size()));
  return words;
}

}  // namespace stillhouse

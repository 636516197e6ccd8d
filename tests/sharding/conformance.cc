#include "tests/sharding/conformance.h"

#include <cmath>
#include <cstring>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace stillhouse {
namespace {

constexpr size_t kGuard = 8;  // elements behind a buffer that nobody may touch
constexpr uint8_t kGuardByte = 0xa5;

// Elements of one dtype in host memory, with a guard behind them.
class Elements {
 public:
  Elements(DType dtype, size_t count)
      : dtype_(dtype), count_(count), bytes_((count + kGuard) * DTypeSize(dtype), kGuardByte) {}
  static Elements Of(DType dtype, int rank, size_t count, size_t first = 0) {
    Elements elements(dtype, count);
    for (size_t i = 0; i < count; ++i) elements.Set(i, ConformanceValue(rank, first + i));
    return elements;
  }

  TensorView View() { return View({0, count_}); }
  TensorView View(FlatRange range) {
    return {bytes_.data() + range.begin * DTypeSize(dtype_), range.size(), dtype_, Device::kCpu,
            nullptr};
  }
  float Get(size_t index) const {
    const uint8_t* at = bytes_.data() + index * DTypeSize(dtype_);
    if (dtype_ == DType::kBF16) {
      uint16_t bits;
      std::memcpy(&bits, at, sizeof(bits));
      return Bf16ToFloat(bits);
    }
    float value;
    std::memcpy(&value, at, sizeof(value));
    return value;
  }
  size_t count() const { return count_; }
  bool GuardIsWhole() const {
    for (size_t i = count_ * DTypeSize(dtype_); i < bytes_.size(); ++i) {
      if (bytes_[i] != kGuardByte) return false;
    }
    return true;
  }

 private:
  void Set(size_t index, float value) {
    uint8_t* at = bytes_.data() + index * DTypeSize(dtype_);
    if (dtype_ == DType::kBF16) {
      const uint16_t bits = FloatToBf16(value);
      std::memcpy(at, &bits, sizeof(bits));
    } else {
      std::memcpy(at, &value, sizeof(value));
    }
  }
  DType dtype_;
  size_t count_;
  std::vector<uint8_t> bytes_;
};

float AsDType(DType dtype, float value) {
  return dtype == DType::kBF16 ? Bf16ToFloat(FloatToBf16(value)) : value;
}

// In fp32 and in rank order: what a reduction must give, bit for bit.
float Sum(DType dtype, int ranks, size_t index) {
  float sum = AsDType(dtype, ConformanceValue(0, index));
  for (int rank = 1; rank < ranks; ++rank) sum += AsDType(dtype, ConformanceValue(rank, index));
  return sum;
}

// The first differing element, as text; "" when there is none.
template <typename Expected>
std::string Difference(const Elements& elements, FlatRange range, Expected expected) {
  for (size_t i = range.begin; i < range.end; ++i) {
    const float got = elements.Get(i), want = expected(i);
    if (std::memcmp(&got, &want, sizeof(got)) != 0) {
      return absl::StrCat("element ", i, ": ", got, ", expected ", want);
    }
  }
  return elements.GuardIsWhole() ? "" : "written past its end";
}

bool Finish(Communicator::Pending pending) {
  EXPECT_TRUE(pending.ok()) << pending.status();
  if (!pending.ok()) return false;
  const absl::Status status = (*pending)->Wait();
  EXPECT_TRUE(status.ok()) << status;
  return status.ok();
}

// Nothing, one, a prime, fewer than ranks, and more than what one piece or one window takes.
constexpr size_t kSizes[] = {0, 1, 3, 97, 1009, 20011};
constexpr size_t kLarge = 1'300'003;

// Even to within one, all with the last rank, and sizes that grow with the rank, the first empty.
std::vector<std::vector<FlatRange>> Shardings(size_t count, int ranks) {
  std::vector<std::vector<FlatRange>> all(3);
  for (int rank = 0; rank < ranks; ++rank) {
    const auto r = static_cast<size_t>(rank), n = static_cast<size_t>(ranks);
    all[0].push_back({count * r / n, count * (r + 1) / n});
    all[1].push_back({0, rank + 1 == ranks ? count : 0});
    const size_t weights = n * (n - 1) / 2;
    const auto cut = [&](size_t at) {
      return at == n || weights == 0 ? (at == 0 ? 0 : count)
                                     : count * (at * (at - 1) / 2) / weights;
    };
    all[2].push_back({r == 0 ? 0 : cut(r), cut(r + 1)});
  }
  return all;
}

void ReducesScatters(Communicator& communicator, DType dtype, size_t count) {
  for (const auto& shards : Shardings(count, communicator.size())) {
    Elements input = Elements::Of(dtype, communicator.rank(), count);
    const FlatRange own = shards[communicator.rank()];
    Elements output(DType::kF32, own.size());
    if (!Finish(communicator.ReduceScatter(input.View(), shards, output.View()))) return;
    EXPECT_EQ(Difference(output, {0, own.size()},
                         [&](size_t i) { return Sum(dtype, communicator.size(), own.begin + i); }),
              "")
        << count;
  }
}

void Gathers(Communicator& communicator, DType dtype, size_t count, bool in_place) {
  for (const auto& shards : Shardings(count, communicator.size())) {
    const FlatRange own = shards[communicator.rank()];
    Elements input = Elements::Of(dtype, /*rank=*/7, own.size(), own.begin);
    Elements output(dtype, count);
    TensorView from = input.View();
    if (in_place) {
      from = output.View(own);
      std::memcpy(from.data, input.View().data, from.size_bytes());
    }
    if (!Finish(communicator.AllGather(from, shards, output.View()))) return;
    EXPECT_EQ(Difference(output, {0, count},
                         [&](size_t i) { return AsDType(dtype, ConformanceValue(7, i)); }),
              "")
        << count;
  }
}

void AllReduces(Communicator& communicator, size_t count) {
  Elements values = Elements::Of(DType::kF32, communicator.rank(), count);
  if (!Finish(communicator.AllReduceSum(values.View()))) return;
  EXPECT_EQ(Difference(values, {0, count},
                       [&](size_t i) { return Sum(DType::kF32, communicator.size(), i); }),
            "")
      << count;
}

void Broadcasts(Communicator& communicator, DType dtype, size_t count) {
  for (int root = 0; root < communicator.size(); ++root) {
    Elements values = Elements::Of(dtype, communicator.rank(), count);
    if (!Finish(communicator.Broadcast(values.View(), root))) return;
    EXPECT_EQ(Difference(values, {0, count},
                         [&](size_t i) { return AsDType(dtype, ConformanceValue(root, i)); }),
              "")
        << count << " from " << root;
  }
}

// Rank a sends rank b the first (a + 2b) % 4 · unit elements behind `unit` · b of its values, all
// of which differ by sender and receiver; some pairs send nothing.
void SwapsAll(Communicator& communicator, DType dtype, size_t unit) {
  const int ranks = communicator.size(), own = communicator.rank();
  const auto width = [&](int from, int to) {
    return static_cast<size_t>((from + 2 * to) % 4) * unit;
  };
  std::vector<FlatRange> sends, receives;
  size_t sent = 0, received = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    sends.push_back({sent, sent + width(own, rank)});
    receives.push_back({received, received + width(rank, own)});
    sent = sends.back().end;
    received = receives.back().end;
  }
  Elements input = Elements::Of(dtype, own, sent);
  Elements output(dtype, received);
  if (!Finish(communicator.AllToAll(input.View(), sends, output.View(), receives))) return;
  for (int rank = 0; rank < ranks; ++rank) {
    size_t there = 0;  // where the sender's range for us begins
    for (int before = 0; before < own; ++before) there += width(rank, before);
    EXPECT_EQ(Difference(output, receives[rank],
                         [&](size_t i) {
                           return AsDType(dtype,
                                          ConformanceValue(rank, there + i - receives[rank].begin));
                         }),
              "")
        << unit << " from " << rank;
  }
}

// Several collectives at once, waited for in another order than they were started in.
void Overlaps(Communicator& communicator) {
  const int ranks = communicator.size();
  constexpr int kBuckets = 4;
  constexpr size_t kCount = 4099;
  const std::vector<FlatRange> shards = Shardings(kCount, ranks)[0];
  const FlatRange own = shards[communicator.rank()];
  Elements input = Elements::Of(DType::kF32, communicator.rank(), kCount);
  std::vector<Elements> outputs(kBuckets, Elements(DType::kF32, own.size()));
  std::vector<std::unique_ptr<PendingCollective>> pending;
  for (Elements& output : outputs) {
    auto started = communicator.ReduceScatter(input.View(), shards, output.View());
    ASSERT_TRUE(started.ok()) << started.status();
    pending.push_back(*std::move(started));
  }
  for (int bucket = kBuckets - 1; bucket >= 0; --bucket) {
    const absl::Status status = pending[bucket]->Wait();
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(Difference(outputs[bucket], {0, own.size()},
                         [&](size_t i) { return Sum(DType::kF32, ranks, own.begin + i); }),
              "");
  }
}

// A computation that polls now and then sees the collective through without waiting.
void FinishesByPolling(Communicator& communicator) {
  Elements values = Elements::Of(DType::kF32, communicator.rank(), 1009);
  auto pending = communicator.AllReduceSum(values.View());
  ASSERT_TRUE(pending.ok()) << pending.status();
  for (;;) {
    const absl::StatusOr<bool> done = (*pending)->Poll();
    ASSERT_TRUE(done.ok()) << done.status();
    if (*done) break;
    std::this_thread::yield();
  }
  EXPECT_EQ(Difference(values, {0, values.count()},
                       [&](size_t i) { return Sum(DType::kF32, communicator.size(), i); }),
            "");
  const absl::Status status = (*pending)->Wait();
  EXPECT_TRUE(status.ok()) << status;
}

// The same bits every time, whoever comes first.
void GivesTheSameBitsAgain(Communicator& communicator) {
  for (int round = 0; round < 10; ++round) AllReduces(communicator, 97);
}

std::vector<ConformanceCase> MakeCases() {
  std::vector<ConformanceCase> cases;
  const auto add = [&](std::string name, auto run) { cases.push_back({std::move(name), run}); };
  using Traits = ConformanceTraits;
  add("ReduceScatterF32", [](Communicator& c, const Traits&) {
    for (const size_t size : kSizes) ReducesScatters(c, DType::kF32, size);
  });
  add("ReduceScatterBF16", [](Communicator& c, const Traits& traits) {
    if (traits.reduces_bf16) {
      for (const size_t size : kSizes) ReducesScatters(c, DType::kBF16, size);
      return;
    }
    Elements input(DType::kBF16, 97);
    const auto shards = Shardings(97, c.size())[0];
    Elements output(DType::kF32, shards[c.rank()].size());
    const auto refused = c.ReduceScatter(input.View(), shards, output.View());
    EXPECT_TRUE(absl::IsUnimplemented(refused.status())) << refused.status();
  });
  add("ReduceScatterLarge", [](Communicator& c, const Traits& traits) {
    if (traits.large) ReducesScatters(c, DType::kF32, kLarge);
  });
  add("AllGather", [](Communicator& c, const Traits&) {
    for (const size_t size : kSizes) {
      for (const DType dtype : {DType::kF32, DType::kBF16}) Gathers(c, dtype, size, false);
    }
  });
  add("AllGatherInPlace", [](Communicator& c, const Traits&) {
    for (const size_t size : kSizes) Gathers(c, DType::kBF16, size, /*in_place=*/true);
  });
  add("AllReduce", [](Communicator& c, const Traits&) {
    for (const size_t size : kSizes) AllReduces(c, size);
  });
  add("AllReduceLarge", [](Communicator& c, const Traits& traits) {
    if (traits.large) AllReduces(c, kLarge);
  });
  add("Broadcast", [](Communicator& c, const Traits&) {
    for (const size_t size : kSizes) {
      for (const DType dtype : {DType::kF32, DType::kBF16}) Broadcasts(c, dtype, size);
    }
  });
  add("AllToAll", [](Communicator& c, const Traits&) {
    for (const size_t unit : {0, 1, 97, 5003}) {
      for (const DType dtype : {DType::kF32, DType::kBF16}) SwapsAll(c, dtype, unit);
    }
  });
  add("Barrier", [](Communicator& c, const Traits&) {
    for (int round = 0; round < 3; ++round) Finish(c.Barrier());
  });
  add("Overlapping", [](Communicator& c, const Traits&) { Overlaps(c); });
  add("Polling", [](Communicator& c, const Traits&) { FinishesByPolling(c); });
  add("SameBitsAgain", [](Communicator& c, const Traits&) { GivesTheSameBitsAgain(c); });
  return cases;
}

}  // namespace

const std::vector<ConformanceCase>& ConformanceCases() {
  static const auto& cases = *new std::vector<ConformanceCase>(MakeCases());
  return cases;
}

void OnEveryRank(std::vector<std::unique_ptr<Communicator>> communicators,
                 const std::function<void(Communicator&)>& body) {
  std::vector<std::thread> threads;
  threads.reserve(communicators.size());
  for (auto& communicator : communicators) {
    threads.emplace_back([&] { body(*communicator); });
  }
  for (std::thread& thread : threads) thread.join();
}

float ConformanceValue(int rank, size_t index) {
  uint64_t bits = (index * 8 + static_cast<uint64_t>(rank)) * 0x9e3779b97f4a7c15u;
  bits = (bits ^ (bits >> 29)) * 0xbf58476d1ce4e5b9u;
  bits ^= bits >> 32;
  const float mantissa = static_cast<float>(static_cast<int32_t>(bits & 0xffffff) - 0x800000);
  return std::ldexp(mantissa, -30 + static_cast<int>(bits >> 40 & 7));
}

}  // namespace stillhouse

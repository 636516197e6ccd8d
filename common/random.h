// Randomness that is a pure function of a key: the same on every machine, in any order, on any
// thread.
//
// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC'11).
#pragma once

#include <array>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace stillhouse {

// One block of Philox4x32-10: a bijection of `counter` under `key`.
std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// A uniform in [0, 1) with 53 bits, from two words.
inline double UniformFromBits(uint32_t high, uint32_t low) {
  return static_cast<double>(((static_cast<uint64_t>(high) << 32) | low) >> 11) * 0x1.0p-53;
}

// A stream of random numbers keyed by (seed, stream). Cheap to make; copy to replay. Not
// thread-safe.
class RandomStream {
 public:
  explicit RandomStream(uint64_t seed, uint64_t stream = 0) : seed_(seed), stream_(stream) {}

  uint32_t Next32();
  uint64_t Next64() {
    const uint64_t high = Next32();
    return high << 32 | Next32();
  }
  double NextUniform() {  // [0, 1), 53 bits
    const uint32_t high = Next32();
    return UniformFromBits(high, Next32());
  }
  double NextNormal();                 // mean 0, variance 1 (Box-Muller)
  uint64_t NextBelow(uint64_t bound);  // [0, bound), unbiased. REQUIRES: bound > 0

 private:
  uint64_t seed_;
  uint64_t stream_;
  uint64_t block_ = 0;
  std::array<uint32_t, 4> words_{};
  int used_ = 4;
};

// A seed for an independent purpose: distinct `purpose` strings give unrelated seeds.
uint64_t DeriveSeed(uint64_t seed, absl::string_view purpose);

// Fisher-Yates over `items`, a pure function of (seed, stream, items).
template <typename T>
void Shuffle(std::vector<T>& items, uint64_t seed, uint64_t stream) {
  RandomStream random(seed, stream);
  for (size_t i = items.size(); i > 1; --i) {
    std::swap(items[i - 1], items[random.NextBelow(i)]);
  }
}

// 0..n-1 shuffled, a pure function of its arguments.
inline std::vector<uint32_t> Permutation(uint32_t n, uint64_t seed, uint64_t stream) {
  std::vector<uint32_t> order(n);
  std::iota(order.begin(), order.end(), 0u);
  Shuffle(order, seed, stream);
  return order;
}

}  // namespace stillhouse

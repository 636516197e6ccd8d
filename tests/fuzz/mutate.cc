#include "tests/fuzz/mutate.h"

#include <algorithm>
#include <cstring>

#include "common/random.h"

namespace stillhouse {
namespace {

constexpr int kChangesMax = 6;    // more, and nothing of the seed's structure is left
constexpr size_t kPieceMax = 64;  // bytes moved, repeated or removed at a time
constexpr size_t kInputMax = 1 << 20;

// Numbers at which lengths, counts and offsets go wrong.
constexpr uint64_t kExtremes[] = {0,          1,          0x7f,       0x80,       0xff,
                                  0x7fff,     0x8000,     0xffff,     0x7fffffff, 0x80000000,
                                  0xffffffff, 1ull << 32, 1ull << 48, 1ull << 62, ~0ull >> 1,
                                  1ull << 63, ~0ull - 7,  ~0ull};

void OverwriteNumber(std::string& input, RandomStream& random) {
  const size_t width = size_t{1} << random.NextBelow(4);
  if (input.size() < width) return;
  char* const place = &input[random.NextBelow(input.size() - width + 1)];
  uint64_t value = kExtremes[random.NextBelow(std::size(kExtremes))];
  if (random.NextBelow(3) == 0) {  // a little more or less than what is there
    value = 0;
    std::memcpy(&value, place, width);
    value += random.NextBelow(9) - 4;
  }
  std::memcpy(place, &value, width);
}

std::string RandomPiece(const std::string& from, RandomStream& random) {
  if (from.empty()) return "";
  const size_t begin = random.NextBelow(from.size());
  return from.substr(begin, 1 + random.NextBelow(kPieceMax));
}

void ChangeOnce(std::string& input, const std::vector<std::string>& seeds, RandomStream& random) {
  const size_t at = input.empty() ? 0 : random.NextBelow(input.size());
  switch (random.NextBelow(7)) {
    case 0:
      if (!input.empty()) input[at] = static_cast<char>(input[at] ^ (1 << random.NextBelow(8)));
      return;
    case 1:
      if (!input.empty()) input[at] = static_cast<char>(random.Next32());
      return;
    case 2:
    case 3:
      return OverwriteNumber(input, random);
    case 4:
      input.resize(at);
      return;
    case 5:
      if (!input.empty()) input.erase(at, 1 + random.NextBelow(kPieceMax));
      return;
    default:
      input.insert(at, RandomPiece(seeds[random.NextBelow(seeds.size())], random));
  }
}

}  // namespace

std::string Mutate(const std::vector<std::string>& seeds, uint64_t seed, uint64_t iteration) {
  RandomStream random(seed, iteration);
  std::string input = seeds[random.NextBelow(seeds.size())];
  // The first iterations try the seeds themselves.
  if (iteration < seeds.size()) return seeds[iteration];
  const uint64_t changes = 1 + random.NextBelow(kChangesMax);
  for (uint64_t i = 0; i < changes; ++i) ChangeOnce(input, seeds, random);
  input.resize(std::min(input.size(), kInputMax));
  return input;
}

}  // namespace stillhouse

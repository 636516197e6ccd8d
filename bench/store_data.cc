#include "bench/store_data.h"

#include <cstring>
#include <numeric>

#include "common/random.h"
#include "storage/codec.h"

namespace stillhouse {
namespace {

constexpr uint32_t kHiddenSize = StoreData::kRowBytes / 2;

SectionSpec Spec() { return {.kind = SectionKind::kHiddenLast, .hidden_size = kHiddenSize}; }

// Finite bf16 values without a pattern that a disk or a file system could make use of.
const std::vector<uint16_t>& Pool() {
  static const std::vector<uint16_t>* const pool = [] {
    auto* values = new std::vector<uint16_t>(8 << 20);
    RandomStream random(/*seed=*/11);
    for (uint16_t& value : *values) value = static_cast<uint16_t>(random.Next32() & 0xbfff);
    return values;
  }();
  return *pool;
}

}  // namespace

PartKey StoreData::Key(uint64_t record) const {
  const Digest document = Sha256Of(absl::StrCat("bench document ", record));
  return {SectionKey(Sha256Of("bench teacher"), document, Spec()), 0};
}

PutItem StoreData::Item(uint64_t record) const {
  const std::vector<uint16_t>& pool = Pool();
  const uint64_t values = record_bytes / sizeof(uint16_t);
  HiddenRows rows{.hidden_size = kHiddenSize, .values = {}};
  const uint64_t first = record * 4093 % (pool.size() - values);
  rows.values.assign(pool.begin() + static_cast<int64_t>(first),
                     pool.begin() + static_cast<int64_t>(first + values));
  std::memcpy(rows.values.data(), &record, 3);  // no two alike; three bytes stay finite
  const auto count = static_cast<uint32_t>(rows.rows());
  return {{{Key(record), count, EncodeHidden(rows, 0, count)}},
          {Sha256Of("bench teacher"), Sha256Of("bench plan"), static_cast<uint32_t>(record), Spec(),
           "bench"}};
}

std::vector<uint64_t> StoreData::Shuffled(uint64_t count, uint64_t seed) {
  std::vector<uint64_t> order(count);
  std::iota(order.begin(), order.end(), uint64_t{0});
  Shuffle(order, seed, /*stream=*/0);
  return order;
}

}  // namespace stillhouse

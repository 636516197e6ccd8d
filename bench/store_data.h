// The records that the store benchmarks write and read: parts of hidden states with made-up
// values, the same for ours and for what it is compared with.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/digest.h"
#include "storage/teacher_cache.h"

namespace stillhouse {

struct StoreData {
  uint64_t records = 0;
  uint64_t record_bytes = 0;  // of a payload, but for its first byte; a multiple of kRowBytes
  static constexpr uint64_t kRowBytes = 128;

  // One record a chunk, as from a teacher that captures one document at a time.
  PutItem Item(uint64_t record) const;
  PartKey Key(uint64_t record) const;
  uint64_t PayloadBytes() const { return record_bytes + 1; }
  // Numbers of the first `count` records in an order of their own.
  static std::vector<uint64_t> Shuffled(uint64_t count, uint64_t seed);
};

// Where the time of a run went into, as JSON for tools/bench.py.
struct Timing {
  double seconds = 0;
  uint64_t bytes = 0;
};

}  // namespace stillhouse

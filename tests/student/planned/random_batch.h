// Micro-batches of random tokens with targets of every kind.
#pragma once

#include <cstdint>
#include <vector>

#include "common/random.h"
#include "common/tensor_view.h"
#include "student/packing.h"

namespace stillhouse {

// Every `stride`-th row has a loss. Ids are below `vocabulary`; the teacher has 12 hidden values.
inline MicroBatch RandomBatch(std::vector<int64_t> lengths, uint32_t vocabulary, int64_t stride,
                              uint64_t seed) {
  constexpr uint32_t kDraws = 50, kTeacherWidth = 12;
  RandomStream random(seed);
  MicroBatch batch;
  batch.lengths = std::move(lengths);
  batch.sampled.draws = kDraws;
  batch.teacher_hidden.hidden_size = kTeacherWidth;
  for (const int64_t length : batch.lengths) {
    for (int64_t t = 0; t < length; ++t) {
      batch.ids.push_back(static_cast<int64_t>(random.NextBelow(vocabulary)));
    }
  }
  for (size_t row = 0; row < batch.ids.size(); row += static_cast<size_t>(stride)) {
    batch.loss_rows.push_back(static_cast<int64_t>(row));
    batch.labels.push_back(static_cast<int32_t>(random.NextBelow(vocabulary)));
    batch.teacher_entropy.push_back(static_cast<float>(random.NextUniform()));
    std::vector<uint16_t> counts(vocabulary);
    for (uint32_t draw = 0; draw < kDraws; ++draw) ++counts[random.NextBelow(vocabulary)];
    for (uint32_t id = 0; id < vocabulary; ++id) {
      if (counts[id] == 0) continue;
      batch.sampled.ids.push_back(static_cast<int32_t>(id));
      batch.sampled.counts.push_back(counts[id]);
    }
    batch.sampled.offsets.push_back(static_cast<uint32_t>(batch.sampled.ids.size()));
    for (uint32_t i = 0; i < kTeacherWidth; ++i) {
      batch.teacher_hidden.values.push_back(FloatToBf16(static_cast<float>(random.NextNormal())));
    }
  }
  return batch;
}

}  // namespace stillhouse

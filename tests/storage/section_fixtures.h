// Made-up sections, pure functions of a seed.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "common/random.h"
#include "storage/codec.h"
#include "storage/codec/top_tokens.h"
#include "storage/part.h"

namespace stillhouse {

inline StatsRows MakeStats(int rows, uint64_t seed) {
  RandomStream random(seed);
  StatsRows stats;
  for (int i = 0; i < rows; ++i) {
    stats.entropy.push_back(static_cast<float>(10 * random.NextUniform()));
    stats.logsumexp.push_back(static_cast<float>(20 + 5 * random.NextNormal()));
    stats.top1_id.push_back(static_cast<int32_t>(random.NextBelow(49152)));
    stats.top1_logprob.push_back(static_cast<float>(-8 * random.NextUniform()));
    stats.next_logprob.push_back(static_cast<float>(-25 * random.NextUniform()));
  }
  return stats;
}

// Draws with a long tail, as a language model gives them.
inline SampledRows MakeSampled(int rows, uint32_t draws, uint32_t vocabulary, uint64_t seed) {
  RandomStream random(seed);
  SampledRows sampled;
  sampled.draws = draws;
  for (int row = 0; row < rows; ++row) {
    std::map<int32_t, uint16_t> counts;
    for (uint32_t i = 0; i < draws; ++i) {
      ++counts[static_cast<int32_t>(vocabulary * std::pow(random.NextUniform(), 6))];
    }
    for (const auto& [id, count] : counts) {
      sampled.ids.push_back(id);
      sampled.counts.push_back(count);
    }
    sampled.offsets.push_back(static_cast<uint32_t>(sampled.ids.size()));
  }
  return sampled;
}

// Row by row a distribution over `vocabulary` ids, from flat to nearly certain.
inline std::vector<float> MakeLogprobs(uint32_t vocabulary, uint64_t seed, uint64_t row) {
  RandomStream random(seed, row);
  const double sharpness = 0.5 + 4.0 * random.NextUniform();
  std::vector<float> logprobs(vocabulary);
  double sum = 0;
  for (uint32_t id = 0; id < vocabulary; ++id) {
    logprobs[id] = static_cast<float>(sharpness * random.NextNormal() - std::log1p(id) * 0.3);
    sum += std::exp(static_cast<double>(logprobs[id]));
  }
  for (float& logprob : logprobs) logprob -= static_cast<float>(std::log(sum));
  return logprobs;
}

inline TopTokenRows MakeTop(int rows, const TopRule& rule, uint32_t vocabulary, uint64_t seed) {
  TopTokenRows top;
  for (int row = 0; row < rows; ++row) {
    AppendTopRow(MakeLogprobs(vocabulary, seed, row), rule, &top);
  }
  return top;
}

inline HiddenRows MakeHidden(int rows, uint32_t width, uint64_t seed) {
  RandomStream random(seed);
  HiddenRows hidden;
  hidden.hidden_size = width;
  for (uint32_t i = 0; i < rows * width; ++i) {
    hidden.values.push_back(random.Next32() & 0xbfff);  // any finite number
  }
  return hidden;
}

inline constexpr uint32_t kTestDraws = 50;
inline SectionSpec SampledSpec() {
  return {.kind = SectionKind::kLogitsSampled, .draws = kTestDraws};
}
inline SectionSpec HiddenSpec(uint32_t width) {
  return {.kind = SectionKind::kHiddenLast, .hidden_size = width};
}
inline Digest TestTeacher() { return Sha256Of("teacher"); }
inline Digest TestDocument(int i) { return Sha256Of(absl::StrCat("document ", i)); }

// Rows of any section.
inline SectionRows MakeRows(const SectionSpec& spec, uint32_t rows, uint64_t seed) {
  const int n = static_cast<int>(rows);
  switch (spec.kind) {
    case SectionKind::kStats:
      return MakeStats(n, seed);
    case SectionKind::kLogitsSampled:
      return MakeSampled(n, spec.draws, 49152, seed);
    case SectionKind::kLogitsTopK:
      return MakeTop(n, {.k = spec.k}, 500, seed);
    case SectionKind::kLogitsTopP:
      return MakeTop(n, {.k = spec.k, .p = spec.p_millionths * 1e-6}, 500, seed);
    case SectionKind::kHiddenLast:
    case SectionKind::kHiddenLayer:
      break;
  }
  return MakeHidden(n, spec.hidden_size, seed + spec.layer);
}

// The payload of a part of `rows` rows.
inline std::string TestPayload(const SectionSpec& spec, uint32_t rows, uint64_t seed) {
  return EncodeSection(spec, MakeRows(spec, rows, seed), 0, rows);
}

// All parts of one section of a document.
inline std::vector<Part> TestParts(const SectionSpec& spec, const Digest& document, uint32_t rows,
                                   uint64_t seed) {
  std::vector<Part> parts;
  for (uint32_t begin = 0; begin < rows; begin += spec.RowsPerPart()) {
    const uint32_t end = std::min(rows, begin + spec.RowsPerPart());
    parts.push_back({{SectionKey(TestTeacher(), document, spec), begin},
                     end - begin,
                     TestPayload(spec, end - begin, seed + begin)});
  }
  return parts;
}

inline Provenance TestProvenance(const SectionSpec& spec, uint32_t chunk = 0) {
  return {TestTeacher(), Sha256Of("plan"), chunk, spec, "cpu test"};
}

}  // namespace stillhouse

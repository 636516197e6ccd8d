// The codecs of the cache on rows as a teacher makes them. Rows per second, and stored bytes a row.
//
// EncodeSampled     ids and counts of 50 draws a row to one part
// DecodeSampled     the way back
// EncodeStats       five numbers a row to one part
// DecodeStats       the way back
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "common/random.h"
#include "common/status.h"
#include "storage/codec.h"

namespace stillhouse {
namespace {

constexpr uint32_t kRows = 512;
constexpr uint32_t kDraws = 50;
constexpr uint32_t kVocabulary = 49152;

// Draws from p(rank) ~ 1 / (rank + 1) over a permuted vocabulary: some twenty unique ids a row, as
// measured on a 135M teacher.
SampledRows MakeSampled() {
  SampledRows rows;
  rows.draws = kDraws;
  RandomStream random(/*seed=*/7);
  for (uint32_t row = 0; row < kRows; ++row) {
    std::map<int32_t, uint16_t> counts;
    const double scale = std::log(2000.0);
    for (uint32_t draw = 0; draw < kDraws; ++draw) {
      const auto rank = static_cast<uint64_t>(std::exp(random.NextUniform() * scale)) - 1;
      ++counts[static_cast<int32_t>((rank * 7919 + row * 31) % kVocabulary)];
    }
    for (const auto& [id, count] : counts) {
      rows.ids.push_back(id);
      rows.counts.push_back(count);
    }
    rows.offsets.push_back(static_cast<uint32_t>(rows.ids.size()));
  }
  return rows;
}

StatsRows MakeStats() {
  StatsRows rows;
  RandomStream random(/*seed=*/7);
  for (uint32_t row = 0; row < kRows; ++row) {
    rows.entropy.push_back(static_cast<float>(random.NextUniform() * 9));
    rows.logsumexp.push_back(static_cast<float>(random.NextUniform() * 30));
    rows.top1_id.push_back(static_cast<int32_t>(random.NextBelow(kVocabulary)));
    rows.top1_logprob.push_back(-static_cast<float>(random.NextUniform() * 3));
    rows.next_logprob.push_back(-static_cast<float>(random.NextUniform() * 12));
  }
  return rows;
}

void ReportRows(benchmark::State& state, size_t bytes) {
  state.SetItemsProcessed(static_cast<int64_t>(state.iterations()) * kRows);
  state.counters["bytes_per_row"] = static_cast<double>(bytes) / kRows;
}

void EncodeSampledRows(benchmark::State& state) {
  const SampledRows rows = MakeSampled();
  size_t bytes = 0;
  for (auto _ : state) {
    const std::string payload = EncodeSampled(rows, 0, kRows);
    bytes = payload.size();
    benchmark::DoNotOptimize(payload.data());
  }
  ReportRows(state, bytes);
}
BENCHMARK(EncodeSampledRows)->Name("EncodeSampled");

void DecodeSampledRows(benchmark::State& state) {
  const std::string payload = EncodeSampled(MakeSampled(), 0, kRows);
  for (auto _ : state) {
    SampledRows rows;
    rows.draws = kDraws;
    SH_CHECK_OK(DecodeSampled(payload, kRows, kVocabulary, &rows));
    benchmark::DoNotOptimize(rows.ids.data());
  }
  ReportRows(state, payload.size());
}
BENCHMARK(DecodeSampledRows)->Name("DecodeSampled");

void EncodeStatsRows(benchmark::State& state) {
  const StatsRows rows = MakeStats();
  size_t bytes = 0;
  for (auto _ : state) {
    const std::string payload = EncodeStats(rows, 0, kRows);
    bytes = payload.size();
    benchmark::DoNotOptimize(payload.data());
  }
  ReportRows(state, bytes);
}
BENCHMARK(EncodeStatsRows)->Name("EncodeStats");

void DecodeStatsRows(benchmark::State& state) {
  const std::string payload = EncodeStats(MakeStats(), 0, kRows);
  for (auto _ : state) {
    StatsRows rows;
    SH_CHECK_OK(DecodeStats(payload, kRows, &rows));
    benchmark::DoNotOptimize(rows.entropy.data());
  }
  ReportRows(state, payload.size());
}
BENCHMARK(DecodeStatsRows)->Name("DecodeStats");

}  // namespace
}  // namespace stillhouse

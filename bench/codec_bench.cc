// The codecs of the cache. Rows per second of one thread's own time, and stored bytes a row, record
// and index left out.
//
// EncodeSampled, DecodeSampled          ids and counts of 50 draws a row
// DecodeSampledPortable                 the same without vector instructions
// EncodeStats, DecodeStats              five numbers a row
// EncodeTop64, DecodeTop64              64 ids and levels a row; DecodeTop64Portable
// EncodeHiddenInt8, DecodeHiddenInt8    576 values a row; DecodeHiddenInt8Portable
// EncodeRecorded, DecodeRecorded        the sampled parts of the cache in the folder that
//                                       STILLHOUSE_BENCH_CACHE names, as they are cut there
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>

#include "common/random.h"
#include "common/status.h"
#include "common/tensor_view.h"
#include "storage/cache_directory.h"
#include "storage/codec.h"
#include "storage/codec/top_tokens.h"

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
      ++counts[static_cast<int32_t>((rank * 7919 + row / 16 * 31) % kVocabulary)];
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

void DecodeSampledRows(benchmark::State& state, Instructions instructions) {
  const std::string payload = EncodeSampled(MakeSampled(), 0, kRows);
  for (auto _ : state) {
    SampledRows rows;
    rows.draws = kDraws;
    SH_CHECK_OK(DecodeSampled(payload, kRows, kVocabulary, &rows, instructions));
    benchmark::DoNotOptimize(rows.ids.data());
  }
  ReportRows(state, payload.size());
}
BENCHMARK_CAPTURE(DecodeSampledRows, best, Instructions::kBest)->Name("DecodeSampled");
BENCHMARK_CAPTURE(DecodeSampledRows, portable, Instructions::kPortable)
    ->Name("DecodeSampledPortable");

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

// The 64 most likely of ids whose likelihood falls with their rank, as above.
TopTokenRows MakeTop() {
  TopTokenRows rows;
  RandomStream random(/*seed=*/7);
  for (uint32_t row = 0; row < kRows; ++row) {
    std::map<int32_t, uint8_t> levels;
    while (levels.size() < 64) {
      const double nats = std::log(2000.0) * random.NextUniform();
      const auto rank = static_cast<uint64_t>(std::exp(nats)) - 1;
      levels.try_emplace(static_cast<int32_t>((rank * 7919 + row / 16 * 31) % kVocabulary),
                         LevelOf(-1 - nats));
    }
    for (const auto& [id, level] : levels) {
      rows.ids.push_back(id);
      rows.levels.push_back(level);
    }
    rows.offsets.push_back(static_cast<uint32_t>(rows.ids.size()));
    rows.residual_levels.push_back(LevelOf(-1.5));
  }
  return rows;
}

void EncodeTopRows(benchmark::State& state) {
  const TopTokenRows rows = MakeTop();
  size_t bytes = 0;
  for (auto _ : state) bytes = EncodeTopTokens(rows, 0, kRows).size();
  ReportRows(state, bytes);
}
BENCHMARK(EncodeTopRows)->Name("EncodeTop64");

void DecodeTopRows(benchmark::State& state, Instructions instructions) {
  const std::string payload = EncodeTopTokens(MakeTop(), 0, kRows);
  for (auto _ : state) {
    TopTokenRows rows;
    SH_CHECK_OK(DecodeTopTokens(payload, kRows, kVocabulary, 64, &rows, instructions));
    benchmark::DoNotOptimize(rows.ids.data());
  }
  ReportRows(state, payload.size());
}
BENCHMARK_CAPTURE(DecodeTopRows, best, Instructions::kBest)->Name("DecodeTop64");
BENCHMARK_CAPTURE(DecodeTopRows, portable, Instructions::kPortable)->Name("DecodeTop64Portable");

HiddenRows MakeHidden() {
  HiddenRows rows;
  rows.hidden_size = 576;
  RandomStream random(/*seed=*/7);
  for (uint32_t i = 0; i < kRows * rows.hidden_size; ++i) {
    rows.values.push_back(FloatToBf16(static_cast<float>(random.NextNormal())));
  }
  return rows;
}

void EncodeInt8Rows(benchmark::State& state) {
  const HiddenRows rows = MakeHidden();
  size_t bytes = 0;
  for (auto _ : state) bytes = EncodeHiddenInt8(rows, 0, kRows).size();
  ReportRows(state, bytes);
}
BENCHMARK(EncodeInt8Rows)->Name("EncodeHiddenInt8");

void DecodeInt8Rows(benchmark::State& state, Instructions instructions) {
  const std::string payload = EncodeHiddenInt8(MakeHidden(), 0, kRows);
  HiddenRows rows;
  rows.hidden_size = 576;
  for (auto _ : state) {
    rows.values.clear();
    SH_CHECK_OK(DecodeHiddenInt8(payload, kRows, &rows, instructions));
    benchmark::DoNotOptimize(rows.values.data());
  }
  ReportRows(state, payload.size());
}
BENCHMARK_CAPTURE(DecodeInt8Rows, best, Instructions::kBest)->Name("DecodeHiddenInt8");
BENCHMARK_CAPTURE(DecodeInt8Rows, portable, Instructions::kPortable)
    ->Name("DecodeHiddenInt8Portable");

struct Recorded {
  std::vector<SampledRows> parts;
  std::vector<std::string> payloads;
  uint64_t rows = 0;
  uint64_t ids = 0;
  uint64_t bytes = 0;
};

// The sampled parts of the cache that the environment names; none without one.
Recorded ReadRecorded() {
  Recorded recorded;
  const char* folder = std::getenv("STILLHOUSE_BENCH_CACHE");
  if (folder == nullptr) return recorded;
  const auto cache = CacheDirectory::Open({.path = folder, .read_only = true});
  SH_CHECK_OK(cache);
  KvScanOptions scan{.begin = "", .end = {}};
  std::map<uint64_t, std::map<uint32_t, SectionSpec>> specs;  // of origins, by segment and slot
  for (bool more = true; more;) {
    const auto found = (*cache)->sections().store().Scan(kCacheData, scan);
    SH_CHECK_OK(found);
    for (const KvEntry& entry : found->entries) {
      const auto place = ParsePlaceKey(entry.key);
      SH_CHECK_OK(place);
      if (IsOriginRecord(entry.value)) {
        const auto origin = ParseOriginRecord(entry.value);
        SH_CHECK_OK(origin);
        specs[place->segment][place->slot] = origin->spec;
        continue;
      }
      const auto record = ParsePartRecord(entry.value);
      SH_CHECK_OK(record);
      const SectionSpec spec = specs[place->segment][record->origin];
      if (spec.kind != SectionKind::kLogitsSampled) continue;
      SampledRows rows;
      rows.draws = spec.draws;
      SH_CHECK_OK(DecodeSampled(record->payload, record->row_count, kVocabularyMax, &rows));
      recorded.rows += rows.rows();
      recorded.ids += rows.ids.size();
      recorded.payloads.push_back(EncodeSampled(rows, 0, static_cast<uint32_t>(rows.rows())));
      recorded.bytes += recorded.payloads.back().size();
      recorded.parts.push_back(std::move(rows));
    }
    more = found->more;
    if (more) scan.begin = found->entries.back().key + std::string(1, '\0');
  }
  return recorded;
}

void ReportRecorded(benchmark::State& state, const Recorded& recorded) {
  state.SetItemsProcessed(static_cast<int64_t>(state.iterations() * recorded.rows));
  const auto rows = static_cast<double>(recorded.rows);
  state.counters["bytes_per_row"] = static_cast<double>(recorded.bytes) / rows;
  state.counters["ids_per_row"] = static_cast<double>(recorded.ids) / rows;
  state.counters["of_3_bytes_an_id"] =
      static_cast<double>(recorded.bytes) / (3.0 * static_cast<double>(recorded.ids));
}

void EncodeRecorded(benchmark::State& state) {
  const Recorded recorded = ReadRecorded();
  if (recorded.rows == 0) return state.SkipWithError("STILLHOUSE_BENCH_CACHE names no cache");
  for (auto _ : state) {
    for (const SampledRows& part : recorded.parts) {
      benchmark::DoNotOptimize(EncodeSampled(part, 0, static_cast<uint32_t>(part.rows())));
    }
  }
  ReportRecorded(state, recorded);
}
BENCHMARK(EncodeRecorded);

void DecodeRecorded(benchmark::State& state) {
  const Recorded recorded = ReadRecorded();
  if (recorded.rows == 0) return state.SkipWithError("STILLHOUSE_BENCH_CACHE names no cache");
  for (auto _ : state) {
    for (size_t i = 0; i < recorded.parts.size(); ++i) {
      SampledRows rows;
      rows.draws = recorded.parts[i].draws;
      SH_CHECK_OK(DecodeSampled(recorded.payloads[i],
                                static_cast<uint32_t>(recorded.parts[i].rows()), kVocabularyMax,
                                &rows));
      benchmark::DoNotOptimize(rows.ids.data());
    }
  }
  ReportRecorded(state, recorded);
}
BENCHMARK(DecodeRecorded);

}  // namespace
}  // namespace stillhouse

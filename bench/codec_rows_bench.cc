// The codecs of logits on what a teacher says about real text (STILLHOUSE_BENCH_ROWS, else made up;
// the label says which), one part a document, and zstd level 3 on the plain form of the same parts.
// Tokens per second of one thread; bytes a token, record and index left out.
//
// EncodeSampled, DecodeSampled    ids and counts of 50 draws
// EncodeTop64, DecodeTop64        the 64 most likely ids with their levels; kl: nats between the
//                                 true distribution over them and the rest, and the decoded one
// Zstd…                           the same rows as 32-bit ids, 16-bit counts, fp32
// log-probabilities
#include <benchmark/benchmark.h>
#include <zstd.h>

#include <cmath>
#include <cstring>

#include "bench/teacher_rows.h"
#include "common/status.h"
#include "storage/codec.h"
#include "storage/codec/top_tokens.h"

namespace stillhouse {
namespace {

constexpr int kZstdLevel = 3;

uint32_t RowsOf(const DocumentRows& document) { return static_cast<uint32_t>(document.rows()); }

template <typename T>
void AppendRaw(const T* values, size_t count, std::string* out) {
  out->append(reinterpret_cast<const char*>(values), count * sizeof(T));
}

std::string PlainSampled(const DocumentRows& document) {
  std::string plain;
  const SampledRows& rows = document.sampled;
  for (size_t row = 0; row < rows.rows(); ++row) {
    const uint32_t first = rows.offsets[row], count = rows.offsets[row + 1] - first;
    AppendRaw(&count, 1, &plain);
    AppendRaw(rows.ids.data() + first, count, &plain);
    AppendRaw(rows.counts.data() + first, count, &plain);
  }
  return plain;
}

std::string PlainTop(const DocumentRows& document) {
  std::string plain;
  for (size_t row = 0; row < document.rows(); ++row) {
    AppendRaw(document.top_ids.data() + row * kBenchTop, kBenchTop, &plain);
    AppendRaw(document.top_logprobs.data() + row * kBenchTop, kBenchTop, &plain);
    AppendRaw(document.rest_logprobs.data() + row, 1, &plain);
  }
  return plain;
}

TopTokenRows TopOf(const DocumentRows& document) {
  TopTokenRows rows;
  rows.ids = document.top_ids;
  for (const float logprob : document.top_logprobs) rows.levels.push_back(LevelOf(logprob));
  for (size_t row = 0; row < document.rows(); ++row) {
    rows.offsets.push_back(static_cast<uint32_t>((row + 1) * kBenchTop));
    rows.residual_levels.push_back(LevelOf(document.rest_logprobs[row]));
  }
  return rows;
}

// Mean over the rows.
double MeanKl(const DocumentRows& document, const TopTokenRows& coded) {
  double sum = 0;
  for (size_t row = 0; row < document.rows(); ++row) {
    const std::vector<float> decoded = LogProbabilities(coded, row);
    for (uint32_t i = 0; i <= kBenchTop; ++i) {
      const double truth =
          i < kBenchTop ? document.top_logprobs[row * kBenchTop + i] : document.rest_logprobs[row];
      sum += std::exp(truth) * (truth - decoded[i]);
    }
  }
  return sum / static_cast<double>(document.rows());
}

struct Sampled {
  static constexpr auto kPlain = PlainSampled;
  static const SampledRows& Rows(const DocumentRows& document) { return document.sampled; }
  static std::string Encode(const SampledRows& rows) {
    return EncodeSampled(rows, 0, static_cast<uint32_t>(rows.rows()));
  }
  static size_t Decode(const std::string& payload, uint32_t count) {
    SampledRows rows;
    rows.draws = kBenchDraws;
    SH_CHECK_OK(DecodeSampled(payload, count, BenchRows().vocabulary, &rows));
    return rows.ids.size();
  }
};

struct Top64 {
  static constexpr auto kPlain = PlainTop;
  static TopTokenRows Rows(const DocumentRows& document) { return TopOf(document); }
  static std::string Encode(const TopTokenRows& rows) {
    return EncodeTopTokens(rows, 0, static_cast<uint32_t>(rows.rows()));
  }
  static size_t Decode(const std::string& payload, uint32_t count) {
    TopTokenRows rows;
    SH_CHECK_OK(DecodeTopTokens(payload, count, BenchRows().vocabulary, kBenchTop, &rows));
    return rows.ids.size();
  }
};

// What zstd does with the same bytes.
template <typename Kind>
struct Zstd {
  static std::string Rows(const DocumentRows& document) { return Kind::kPlain(document); }
  static std::string Encode(const std::string& plain) {
    std::string packed(ZSTD_compressBound(plain.size()), '\0');
    packed.resize(
        ZSTD_compress(packed.data(), packed.size(), plain.data(), plain.size(), kZstdLevel));
    return packed;
  }
  static size_t Decode(const std::string& packed, uint32_t) {
    std::string plain(ZSTD_getFrameContentSize(packed.data(), packed.size()), '\0');
    const size_t size = ZSTD_decompress(plain.data(), plain.size(), packed.data(), packed.size());
    SH_CHECK(size == plain.size());
    return size;
  }
};

void Report(benchmark::State& state, uint64_t bytes) {
  const TeacherRows& teacher = BenchRows();
  const auto rows = static_cast<double>(teacher.rows());
  double unique = 0;
  for (const DocumentRows& document : teacher.documents) {
    unique += static_cast<double>(document.sampled.ids.size());
  }
  state.SetItemsProcessed(static_cast<int64_t>(state.iterations() * teacher.rows()));
  state.counters["bytes_per_token"] = static_cast<double>(bytes) / rows;
  state.counters["unique_ids_per_token"] = unique / rows;
  state.SetLabel(teacher.source);
}

template <typename Kind>
void Encode(benchmark::State& state) {
  std::vector<std::decay_t<decltype(Kind::Rows({}))>> all;
  for (const DocumentRows& document : BenchRows().documents) all.push_back(Kind::Rows(document));
  uint64_t bytes = 0;
  for (auto _ : state) {
    bytes = 0;
    for (const auto& rows : all) bytes += Kind::Encode(rows).size();
  }
  Report(state, bytes);
}

template <typename Kind>
void Decode(benchmark::State& state) {
  std::vector<std::string> payloads;
  uint64_t bytes = 0;
  double kl = 0;
  const TeacherRows& teacher = BenchRows();
  for (const DocumentRows& document : teacher.documents) {
    payloads.push_back(Kind::Encode(Kind::Rows(document)));
    bytes += payloads.back().size();
    if constexpr (std::is_same_v<Kind, Top64>) {
      TopTokenRows decoded;
      SH_CHECK_OK(DecodeTopTokens(payloads.back(), RowsOf(document), teacher.vocabulary, kBenchTop,
                                  &decoded));
      kl += MeanKl(document, decoded) / static_cast<double>(teacher.documents.size());
    }
  }
  for (auto _ : state) {
    for (size_t d = 0; d < payloads.size(); ++d) {
      benchmark::DoNotOptimize(Kind::Decode(payloads[d], RowsOf(teacher.documents[d])));
    }
  }
  Report(state, bytes);
  if constexpr (std::is_same_v<Kind, Top64>) state.counters["kl"] = kl;
}

BENCHMARK(Encode<Sampled>)->Name("EncodeSampled");
BENCHMARK(Encode<Zstd<Sampled>>)->Name("ZstdEncodeSampled");
BENCHMARK(Decode<Sampled>)->Name("DecodeSampled");
BENCHMARK(Decode<Zstd<Sampled>>)->Name("ZstdDecodeSampled");
BENCHMARK(Encode<Top64>)->Name("EncodeTop64");
BENCHMARK(Encode<Zstd<Top64>>)->Name("ZstdEncodeTop64");
BENCHMARK(Decode<Top64>)->Name("DecodeTop64");
BENCHMARK(Decode<Zstd<Top64>>)->Name("ZstdDecodeTop64");

}  // namespace
}  // namespace stillhouse

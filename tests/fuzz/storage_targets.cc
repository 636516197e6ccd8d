// The codecs' payloads, the cache's records, and plan files.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "common/file.h"
#include "common/random.h"
#include "common/status.h"
#include "dataset/plan.h"
#include "dataset/plan_writer.h"
#include "storage/codec.h"
#include "storage/codec/top_tokens.h"
#include "storage/export_file.h"
#include "storage/export_manifest.h"
#include "storage/record.h"
#include "tests/fuzz/target.h"

namespace stillhouse {
namespace {

constexpr uint32_t kRows = 5;
constexpr uint32_t kDraws = 50;
constexpr uint32_t kVocabulary = 49152;
constexpr uint32_t kHiddenSize = 8;

StatsRows SomeStats() {
  StatsRows rows;
  RandomStream random(/*seed=*/3);
  for (uint32_t row = 0; row < kRows; ++row) {
    rows.entropy.push_back(static_cast<float>(random.NextUniform() * 9));
    rows.logsumexp.push_back(static_cast<float>(random.NextNormal() * 20));
    rows.top1_id.push_back(static_cast<int32_t>(random.NextBelow(kVocabulary)));
    rows.top1_logprob.push_back(-static_cast<float>(random.NextUniform()));
    rows.next_logprob.push_back(-static_cast<float>(random.NextUniform() * 12));
  }
  return rows;
}

SampledRows SomeSampled() {
  SampledRows rows;
  rows.draws = kDraws;
  RandomStream random(/*seed=*/4);
  for (uint32_t row = 0; row < kRows; ++row) {
    int32_t id = static_cast<int32_t>(random.NextBelow(1000));
    for (uint32_t left = kDraws; left > 0;) {
      const auto count = static_cast<uint16_t>(1 + random.NextBelow(left));
      rows.ids.push_back(id);
      rows.counts.push_back(count);
      left -= count;
      id += 1 + static_cast<int32_t>(random.NextBelow(3000));
    }
    rows.offsets.push_back(static_cast<uint32_t>(rows.ids.size()));
  }
  return rows;
}

FuzzTarget StatsTarget() {
  return {"codec_stats", {EncodeStats(SomeStats(), 0, kRows)}, [](absl::string_view input) {
            StatsRows rows;
            const absl::Status status = DecodeStats(input, kRows, &rows);
            SH_CHECK(rows.rows() == (status.ok() ? kRows : 0));
          }};
}

FuzzTarget SampledTarget() {
  return {"codec_sampled", {EncodeSampled(SomeSampled(), 0, kRows)}, [](absl::string_view input) {
            SampledRows rows;
            rows.draws = kDraws;
            const absl::Status status = DecodeSampled(input, kRows, kVocabulary, &rows);
            SampledRows twin;
            twin.draws = kDraws;
            SH_CHECK(status ==
                     DecodeSampled(input, kRows, kVocabulary, &twin, Instructions::kPortable));
            SH_CHECK(rows.ids == twin.ids && rows.counts == twin.counts);
            if (!status.ok()) {
              SH_CHECK(rows.rows() == 0 && rows.ids.empty());
              return;
            }
            SH_CHECK(rows.rows() == kRows);
            for (size_t row = 0; row < kRows; ++row) {
              uint32_t draws = 0;
              for (uint32_t i = rows.offsets[row]; i < rows.offsets[row + 1]; ++i) {
                SH_CHECK(rows.ids[i] >= 0 && static_cast<uint32_t>(rows.ids[i]) < kVocabulary);
                SH_CHECK(i == rows.offsets[row] || rows.ids[i] > rows.ids[i - 1]);
                draws += rows.counts[i];
              }
              SH_CHECK(draws == kDraws);
            }
          }};
}

FuzzTarget TopTarget() {
  const SampledRows sampled = SomeSampled();
  TopTokenRows rows;
  rows.offsets = sampled.offsets;
  rows.ids = sampled.ids;
  for (const uint16_t count : sampled.counts) rows.levels.push_back(static_cast<uint8_t>(count));
  rows.residual_levels.assign(kRows, 40);
  return {"codec_top", {EncodeTopTokens(rows, 0, kRows)}, [](absl::string_view input) {
            TopTokenRows decoded, twin;
            const absl::Status status =
                DecodeTopTokens(input, kRows, kVocabulary, kDraws, &decoded);
            SH_CHECK(status == DecodeTopTokens(input, kRows, kVocabulary, kDraws, &twin,
                                               Instructions::kPortable));
            SH_CHECK(decoded.ids == twin.ids && decoded.levels == twin.levels);
            if (!status.ok()) {
              SH_CHECK(decoded.rows() == 0 && decoded.ids.empty());
              return;
            }
            SH_CHECK(decoded.rows() == kRows && decoded.levels.size() == decoded.ids.size());
            const TopTokenRows both[] = {decoded, KeepTop(decoded, 3)};
            SH_CHECK(both[1].rows() == kRows);
            for (size_t row = 0; row < kRows; ++row) {
              for (const TopTokenRows& some : both) {
                std::vector<float> values;
                // Of what never was a distribution the fixed point keeps few digits.
                if (std::abs(LogProbabilities(some, row, &values)) > kTopSumErrorMax) continue;
                double sum = 0;
                for (const float value : values) sum += std::exp(static_cast<double>(value));
                SH_CHECK(std::abs(sum - 1) < 1e-6, "sum ", sum);
              }
            }
          }};
}

FuzzTarget HiddenTarget() {
  HiddenRows rows{.hidden_size = kHiddenSize, .values = {}};
  rows.values.assign(static_cast<size_t>(kRows) * kHiddenSize, 0x3f80);
  return {"codec_hidden",
          {EncodeHidden(rows, 0, kRows), EncodeHiddenInt8(rows, 0, kRows)},
          [](absl::string_view input) {
            HiddenRows bytes{.hidden_size = kHiddenSize, .values = {}}, twin = bytes;
            const bool ok = DecodeHiddenInt8(input, kRows, &bytes).ok();
            SH_CHECK(bytes.rows() == (ok ? kRows : 0));
            SH_CHECK(ok == DecodeHiddenInt8(input, kRows, &twin, Instructions::kPortable).ok() &&
                     bytes.values == twin.values);
            HiddenRows decoded{.hidden_size = kHiddenSize, .values = {}};
            (void)DecodeHidden(input, kRows, &decoded);
            (void)CanonicalValues({.kind = SectionKind::kHiddenLast, .hidden_size = kHiddenSize},
                                  input, kRows);
          }};
}

// A canonical name, a zero byte, a payload. Whatever is stored has gone through this.
FuzzTarget SectionTarget() {
  const SampledRows sampled = SomeSampled();
  TopTokenRows top;
  for (uint32_t row = 0; row < kRows; ++row) {
    std::vector<float> logprobs(40, std::log(0.5f / 40));
    logprobs[row] = std::log(0.5f + 0.5f / 40);
    AppendTopRow(logprobs, {.k = 8}, &top);
  }
  HiddenRows hidden{.hidden_size = kHiddenSize, .values = {}};
  hidden.values.assign(static_cast<size_t>(kRows) * kHiddenSize, 0x3f80);
  const std::pair<const char*, SectionRows> rows[] = {
      {"stats", SomeStats()},
      {"logits/sampled?draws=50", sampled},
      {"logits/topk?k=8", top},
      {"logits/topp?p=0.9&k_max=8", top},
      {"hidden/last?hidden_size=8&dtype=bf16", hidden},
      {"hidden/11?hidden_size=8&dtype=int8", hidden}};
  std::vector<std::string> seeds;
  for (const auto& [name, some] : rows) {
    seeds.push_back(name + std::string(1, '\0') +
                    EncodeSection(*ParseSectionSpec(name), some, 0, kRows));
    SH_CHECK_OK(
        CanonicalValues(*ParseSectionSpec(name), seeds.back().substr(strlen(name) + 1), kRows));
  }
  return {"sections", seeds, [](absl::string_view input) {
            const size_t end = std::min(input.find('\0'), input.size());
            const auto spec = ParseSectionSpec(input.substr(0, end));
            if (!spec.ok()) return;
            SH_CHECK(spec->Canonical() == input.substr(0, end));
            if (spec->RowsPerPart() < kRows) return;
            const absl::string_view payload = input.substr(std::min(end + 1, input.size()));
            const auto values = CanonicalValues(*spec, payload, kRows);
            if (!values.ok()) return;
            // What was accepted once encodes to rows with the same values.
            SectionRows decoded = NoRows(*spec);
            SH_CHECK_OK(DecodeSection(*spec, payload, kRows, kVocabularyMax, &decoded));
            if (spec->dtype == HiddenDtype::kInt8) return;  // its scales need not be the least
            const std::string again = EncodeSection(*spec, decoded, 0, kRows);
            SH_CHECK(*CanonicalValues(*spec, again, kRows) == *values);
          }};
}

FuzzTarget RecordTarget() {
  const std::string payload = EncodeStats(SomeStats(), 0, kRows);
  PartRecord part;
  part.row_count = kRows;
  part.payload = payload;
  const std::string object = EncodeObjectHeader({.size = 10, .generation = 2, .digest = {}});
  return {"records",
          {EncodePartRecord(part), EncodeOriginRecord({}), EncodeIndexEntry({}), object,
           EncodePieceRecord({.generation = 1, .index = 2, .payload = payload}), PlaceKey({1, 2}),
           IndexKey({})},
          [](absl::string_view input) {
            (void)IsOriginRecord(input);
            (void)ParsePartRecord(input);
            (void)ParseOriginRecord(input);
            (void)ParsePlaceKey(input);
            (void)ParseIndexKey(input);
            (void)ParseIndexEntry(input);
            (void)ParseObjectHeader(input);
            (void)ParsePieceRecord(input);
          }};
}

std::string SomePlan() {
  const auto folder = TempFolder::Create("fuzz");
  SH_CHECK_OK(folder);
  auto writer = PlanWriter::Create({.folder = folder->path(),
                                    .tokenizer = Sha256Of("tokenizer"),
                                    .vocabulary = 100,
                                    .max_tokens = 9,
                                    .shuffle_window = 2,
                                    .chunk_tokens = 20,
                                    .seed = 1,
                                    .domains = {"a", "other"}});
  SH_CHECK_OK(writer);
  for (uint32_t source = 0; source < 6; ++source) {
    const std::vector<int32_t> ids(2 + source, static_cast<int32_t>(source));
    SH_CHECK_OK((*writer)->Add(ids, std::vector<uint8_t>(ids.size(), 1), source % 2, source));
  }
  const auto written = (*writer)->Finish({false, true, false, false, false, false});
  SH_CHECK_OK(written);
  const auto bytes = ReadFile(written->path);
  SH_CHECK_OK(bytes);
  return *bytes;
}

FuzzTarget PlanTarget() {
  return {"plan", {SomePlan()}, [](absl::string_view input) {
            const auto plan = ParsePlan(std::make_shared<const std::string>(input));
            if (!plan.ok()) return;
            for (uint32_t i = 0; i < (*plan)->chunk_count(); ++i) (void)(*plan)->chunk(i).batches;
            for (uint32_t i = 0; i < (*plan)->document_count(); ++i) {
              for (const int32_t id : (*plan)->document(i).tokens) {
                SH_CHECK(id >= 0 && static_cast<uint32_t>(id) < (*plan)->vocabulary());
              }
            }
          }};
}

absl::Status ReadExport(absl::string_view file) {
  SH_ASSIGN_OR_RETURN(
      const auto reader,
      ExportFileReader::Open(file.size(), [file](uint64_t offset, size_t size, char* out) {
        SH_CHECK(offset <= file.size() && size <= file.size() - offset);
        std::memcpy(out, file.data() + offset, size);
        return absl::OkStatus();
      }));
  for (;;) {
    SH_ASSIGN_OR_RETURN(const auto part, reader->Next());
    if (!part.has_value()) return absl::OkStatus();
    SH_CHECK(part->spec < reader->specs().size() && !part->part.payload.empty());
  }
}

FuzzTarget ExportTarget() {
  std::string file;
  ExportFileWriter writer({"logits/sampled?draws=50", "stats"}, [&file](absl::string_view bytes) {
    file.append(bytes.data(), bytes.size());
    return absl::OkStatus();
  });
  for (uint32_t i = 0; i < 3; ++i) {
    SH_CHECK_OK(writer.Add(
        {{Sha256Of(std::string(i, 'x')), 0}, kRows, EncodeStats(SomeStats(), 0, kRows)}, i % 2));
  }
  SH_CHECK_OK(writer.Finish());
  const ExportManifest manifest = {.job = {"test", {}, {}, {SectionSpec{}}, {SectionSpec{}}},
                                   .artefacts = {{"tokenizer", {}}},
                                   .files = {{8, {}}, {9, {}}}};
  return {"export", {file, EncodeExportManifest(manifest)}, [](absl::string_view input) {
            (void)ReadExport(input);
            const auto parsed = ParseExportManifest(input);
            SH_CHECK(!parsed.ok() || EncodeExportManifest(*parsed) == input);
          }};
}

}  // namespace

std::vector<FuzzTarget> StorageTargets() {
  return {StatsTarget(),   SampledTarget(), TopTarget(),    HiddenTarget(),
          SectionTarget(), RecordTarget(),  ExportTarget(), PlanTarget()};
}

}  // namespace stillhouse

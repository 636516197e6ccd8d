// logits/sampled: the ids of a part as lists of rows, then the counts of every row.
#include <algorithm>
#include <array>
#include <bit>

#include "common/byte_io.h"
#include "common/status.h"
#include "storage/codec.h"
#include "storage/codec/id_lists.h"
#include "storage/codec/payload.h"
#include "storage/codec/range_coder.h"

namespace stillhouse {
namespace {

constexpr char kSection[] = "logits/sampled";
constexpr uint32_t kSpreadClasses = 16;
constexpr uint32_t kLeftClasses = 3;

// Priors of a count less one, as SymbolModel reads them: by ids left, how often the id stands in
// the part, and draws to spare (CountContext). Measured as those of id_lists.cc.
constexpr uint32_t kSpreadPriors = 12;
using CountPriors = std::array<absl::string_view, kSpreadPriors>;
constexpr std::array<CountPriors, kLeftClasses* kOftenClasses> kCountPriors = {{
    // two ids left, once in the part
    {"ff00000000000000", "ff00000000000000", "ff00000000000000", "ff00000000000000",
     "fbf0000000000000", "faaf000000000000", "f987e00000000000", "fa559e0000000000",
     "fa4048f000000000", "f860988f00000000", "f0507009e0000000", "f8608600af000000"},
    // two ids left, up to seven times
    {"ff00000000000000", "ff00000000000000", "ff00000000000000", "ff00000000000000",
     "edf0000000000000", "faaf000000000000", "fb8af00000000000", "eb77bf0000000000",
     "fa848af000000000", "e95070bf00000000", "e8557759f0000000", "ea7800059f000000"},
    // two ids left, more often
    {"ff00000000000000", "ff00000000000000", "ff00000000000000", "ff00000000000000",
     "ecf0000000000000", "cccf000000000000", "bc9bf00000000000", "c799cf0000000000",
     "ba78bbf000000000", "c7077aaf00000000", "c8846069f0000000", "c9559057af000000"},
    // three or four, once in the part
    {"fe00000000000000", "fe00000000000000", "fcc0000000000000", "fbab000000000000",
     "fa8ab00000000000", "fa86ba0000000000", "f9779aa000000000", "fb8766b900000000",
     "fa87768aa0000000", "fa735687b7000000", "fa7426468ab00000", "fa72746484d00000"},
    // three or four, up to seven times
    {"ff00000000000000", "ff00000000000000", "fde0000000000000", "fccd000000000000",
     "fbbdc00000000000", "fba9db0000000000", "fc99bdd000000000", "fb9899dc00000000",
     "fa97799cd0000000", "fb877579dc000000", "fb7766658bd00000", "fa93764277f00000"},
    // three or four, more often
    {"ff00000000000000", "ff00000000000000", "fef0000000000000", "fdee000000000000",
     "eccee00000000000", "ebbbed0000000000", "ebbbbed000000000", "eb9aaaed00000000",
     "eba79abdd0000000", "eba88589ed000000", "eb9887668bf00000", "ea87756658f00000"},
    // more, once in the part
    {"fb40000000000000", "fb85300000000000", "fb87632000000000", "fb86764100000000",
     "fb86766310000000", "fb76667540000000", "fb86657663000000", "fa85656676100000",
     "fb85647468700000", "fb75665268900000", "fa7863753ac00000", "fa7863753ac00000"},
    // more, up to seven times
    {"fd83000000000000", "fda8730000000000", "fca9975000000000", "fca8987410000000",
     "fc98989650000000", "fb98889884000000", "fb98878896100000", "fb978788a8600000",
     "fb9676779aa00000", "fb97777689c00000", "fb67856676d00000", "fb67856676d00000"},
    // more, more often
    {"fea6400000000000", "fdca964000000000", "fdbab98500000000", "fdbabaa750000000",
     "fdbabab991000000", "fcbababaa7000000", "fca9b9baba500000", "fca9a9aabba00000",
     "fca9a9a9bbc00000", "eba8a8989ae00000", "eca8888798f00000", "eca8888798f00000"},
}};

// The model of the next count of a row: `ids` ids, at least 2, are left and `spare` draws, at least
// 1, beyond the one that each has.
uint32_t CountContext(uint32_t spare, uint32_t ids, uint8_t often) {
  const uint32_t quarters = 4 * spare / ids;
  uint32_t spread = quarters;
  if (quarters >= 4) {  // half octaves of the mean
    const auto width = static_cast<uint32_t>(std::bit_width(quarters));
    spread = std::min(kSpreadClasses - 1, 2 * width - 2 + (quarters >> (width - 2)) % 2);
  }
  const uint32_t left = ids == 2 ? 0 : ids < 5 ? 1 : 2;
  return (left * kOftenClasses + often) * kSpreadClasses + spread;
}

using CountModels = std::array<SymbolModel, kLeftClasses * kOftenClasses * kSpreadClasses>;

// As they are before the first count. Thread-safe.
const CountModels& UntaughtCounts() {
  static const CountModels models = [] {
    CountModels m;
    for (uint32_t i = 0; i < m.size(); ++i) {
      const uint32_t spread = std::min(i % kSpreadClasses, kSpreadPriors - 1);
      m[i] = SymbolModel(kCountPriors[i / kSpreadClasses][spread]);
    }
    return m;
  }();
  return models;
}

// The spec's most rows bound what a payload of few bytes can ask for.
uint32_t RowsMax(uint32_t draws) {
  return SectionSpec{.kind = SectionKind::kLogitsSampled, .draws = draws}.RowsPerPart();
}

void CheckRow(const SampledRows& rows, uint32_t row) {
  const uint32_t first = rows.offsets[row], last = rows.offsets[row + 1];
  SH_CHECK(first < last && last <= rows.ids.size() && last <= rows.counts.size(), "row ", row);
  int64_t previous = -1;
  uint64_t sum = 0;
  for (uint32_t i = first; i < last; ++i) {
    SH_CHECK(rows.ids[i] > previous && rows.counts[i] >= 1, "row ", row, " is not in order");
    previous = rows.ids[i];
    sum += rows.counts[i];
  }
  SH_CHECK(previous < kVocabularyMax, "id ", previous);
  SH_CHECK(sum == rows.draws, "row ", row, " has ", sum, " draws, not ", rows.draws);
}

// Counts of one row. The last, and all once none are to spare, follow from the others.
template <bool kPortable>
absl::Status DecodeCounts(uint32_t draws, absl::Span<const uint8_t> often, CountModels* models,
                          RangeDecoder<kPortable>* symbols, BitReader* bits, uint16_t* counts) {
  const auto ids = static_cast<uint32_t>(often.size());
  if (ids == 0 || ids > draws) return MalformedPayload(kSection, "a row of no draws, or too many");
  uint32_t spare = draws - ids;
  uint32_t i = 0;
  for (; i + 1 < ids && spare > 0; ++i) {
    SymbolModel* model = &(*models)[CountContext(spare, ids - i, often[i])];
    const uint32_t more = Magnitude::Get(model, symbols, bits);
    if (more > spare) return MalformedPayload(kSection, "more draws than the row has");
    spare -= more;
    counts[i] = static_cast<uint16_t>(1 + more);
  }
  for (; i + 1 < ids; ++i) counts[i] = 1;
  counts[ids - 1] = static_cast<uint16_t>(1 + spare);
  return absl::OkStatus();
}

template <bool kPortable>
absl::Status DecodeRows(absl::string_view payload, uint32_t row_count, uint32_t vocabulary,
                        SampledRows* rows) {
  SH_ASSIGN_OR_RETURN(const CodedStreams streams, TakeStreams(kSection, payload));
  RangeDecoder<kPortable> symbols(streams.symbols);
  BitReader bits(streams.bits);
  const uint32_t draws = rows->draws;
  IdRows ids;
  SH_RETURN_IF_ERROR_AT(
      DecodeIdLists({row_count, vocabulary, static_cast<uint64_t>(row_count) * draws},
                    streams.distinct, &symbols, &bits, &ids),
      kSection);
  std::vector<uint16_t> counts(ids.ids.size());
  CountModels models = UntaughtCounts();
  for (uint32_t row = 0; row < row_count; ++row) {
    const uint32_t first = ids.offsets[row];
    SH_RETURN_IF_ERROR(
        DecodeCounts(draws, absl::MakeSpan(ids.often).subspan(first, ids.offsets[row + 1] - first),
                     &models, &symbols, &bits, counts.data() + first));
  }
  if (!symbols.AtEnd() || !bits.AtEnd()) return MalformedPayload(kSection, "bytes are left over");
  const auto before = static_cast<uint32_t>(rows->ids.size());
  rows->ids.insert(rows->ids.end(), ids.ids.begin(), ids.ids.end());
  rows->counts.insert(rows->counts.end(), counts.begin(), counts.end());
  for (uint32_t row = 1; row <= row_count; ++row)
    rows->offsets.push_back(before + ids.offsets[row]);
  return absl::OkStatus();
}

}  // namespace

std::string EncodeSampled(const SampledRows& rows, uint32_t begin, uint32_t end) {
  SH_CHECK(begin < end && end <= rows.rows(), "rows ", begin, " to ", end);
  SH_CHECK(end - begin <= RowsMax(rows.draws), end - begin, " rows in a part");
  for (uint32_t row = begin; row < end; ++row) CheckRow(rows, row);
  const uint32_t first = rows.offsets[begin];
  const auto ids = absl::MakeSpan(rows.ids).subspan(first, rows.offsets[end] - first);
  RangeEncoder symbols;
  std::string bit_bytes;
  BitWriter bits(bit_bytes);
  const EncodedIdLists lists = EncodeIdLists(
      absl::MakeSpan(rows.offsets).subspan(begin, end - begin + 1), ids, &symbols, &bits);
  CountModels models = UntaughtCounts();
  for (uint32_t row = begin; row < end; ++row) {
    uint32_t left = rows.offsets[row + 1] - rows.offsets[row];
    uint32_t spare = rows.draws - left;
    for (uint32_t i = rows.offsets[row]; left > 1 && spare > 0; ++i, --left) {
      const uint32_t more = rows.counts[i] - 1u;
      SymbolModel* model = &models[CountContext(spare, left, lists.often[i - first])];
      Magnitude::Put(more, model, &symbols, &bits);
      spare -= more;
    }
  }
  bits.Finish();
  return JoinStreams(CodecId::kSampledLists, lists.distinct, symbols.Finish(), bit_bytes);
}

absl::Status DecodeSampled(absl::string_view payload, uint32_t row_count, uint32_t vocabulary,
                           SampledRows* rows, Instructions instructions) {
  SH_CHECK(rows->draws > 0);
  SH_RETURN_IF_ERROR(TakeCodec(kSection, CodecId::kSampledLists, &payload));
  if (row_count > RowsMax(rows->draws)) return MalformedPayload(kSection, "too many rows");
  return instructions == Instructions::kPortable
             ? DecodeRows<true>(payload, row_count, vocabulary, rows)
             : DecodeRows<false>(payload, row_count, vocabulary, rows);
}

}  // namespace stillhouse

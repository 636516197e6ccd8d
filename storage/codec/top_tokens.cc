#include "storage/codec/top_tokens.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "absl/types/span.h"
#include "common/status.h"
#include "storage/codec/id_lists.h"
#include "storage/codec/payload.h"
#include "storage/codec/range_coder.h"

namespace stillhouse {
namespace {

using Wide = unsigned __int128;

constexpr char kSection[] = "logits/topk or topp";
constexpr int kLevels = 256;
constexpr int kLowBits = 4;  // of a level, nearly uniform
constexpr int kOneBits = 40;
constexpr int64_t kOne = 1ll << kOneBits;            // probabilities and logarithms in fixed point
constexpr int64_t kLn2 = 762123384786;               // ln 2 * 2^40
constexpr uint64_t kStepBelow = 0x3e07ead5116baf23;  // exp(-1/32) * 2^62

// Where each run of equal steps begins: in levels, and in 32nds of a nat.
struct Run {
  int level;
  int nats32;
  int step32;
};
constexpr std::array<Run, 4> kRuns = {{{0, 0, 1}, {128, 128, 2}, {192, 256, 4}, {224, 384, 8}}};

constexpr std::array<int, kLevels> kNats32 = [] {
  std::array<int, kLevels> nats{};
  for (int level = 0; level < kLevels; ++level) {
    Run run = kRuns[0];
    for (const Run& r : kRuns) run = r.level <= level ? r : run;
    nats[level] = run.nats32 + (level - run.level) * run.step32;
  }
  return nats;
}();

// exp of every level, times 2^40.
constexpr std::array<int64_t, kLevels> kProbability = [] {
  std::array<int64_t, kLevels> probability{};
  uint64_t power = 1ull << 62;  // exp(-n/32)
  int n = 0;
  for (int level = 0; level < kLevels; ++level) {
    for (; n < kNats32[level]; ++n) {
      power = static_cast<uint64_t>((static_cast<Wide>(power) * kStepBelow + (1ull << 61)) >> 62);
    }
    constexpr int kDropped = 62 - kOneBits;
    probability[level] = static_cast<int64_t>((power + (1ull << (kDropped - 1))) >> kDropped);
  }
  return probability;
}();

// ln(sum / 2^40) * 2^40, by ln m = 2 artanh((m - 1) / (m + 1)) for m in [1/sqrt 2, sqrt 2).
// REQUIRES: sum > 0.
int64_t LnOf(int64_t sum) {
  int exponent = std::bit_width(static_cast<uint64_t>(sum)) - 1 - kOneBits;
  int64_t m = exponent >= 0 ? sum >> exponent : sum << -exponent;  // in [1, 2)
  constexpr int64_t kRoot2 = 1554944255988;
  if (m >= kRoot2) {
    m >>= 1;
    ++exponent;
  }
  const auto times = [](int64_t a, int64_t b) {
    return static_cast<int64_t>(static_cast<__int128>(a) * b / kOne);
  };
  const auto y = static_cast<int64_t>(static_cast<__int128>(m - kOne) * kOne / (m + kOne));
  const int64_t square = times(y, y);
  int64_t power = y, series = y;
  for (int n = 3; n <= 13; n += 2) {
    power = times(power, square);
    series += power / n;
  }
  return 2 * series + exponent * kLn2;
}

// The level whose interval holds this many 2^-40 nats.
uint8_t LevelOfFixed(int64_t nats) {
  constexpr int64_t kHalf32nd = kOne / 64;
  int level = 0;
  for (int step = kLevels / 2; step > 0; step /= 2) {
    const int64_t threshold = (kNats32[level + step - 1] + kNats32[level + step]) * kHalf32nd;
    if (nats >= threshold) level += step;
  }
  return static_cast<uint8_t>(level);
}

// The model of a level's high bits: by those of the id before in the row, and by how many rows of
// the part have the id.
using LevelModels = std::array<SymbolModel, (kSymbols + 1) * kOftenClasses>;
uint32_t LevelContext(uint32_t previous, uint8_t often) { return previous * kOftenClasses + often; }
constexpr uint32_t kNonePrevious = kSymbols;

template <bool kPortable>
absl::Status DecodeRows(absl::string_view payload, uint32_t row_count, uint32_t vocabulary,
                        uint32_t ids_max, TopTokenRows* rows) {
  SH_ASSIGN_OR_RETURN(const CodedStreams streams, TakeStreams(kSection, payload));
  RangeDecoder<kPortable> symbols(streams.symbols);
  BitReader bits(streams.bits);
  const uint64_t ids_of_all =
      std::min<uint64_t>(kTopIdsMax, static_cast<uint64_t>(row_count) * ids_max);
  IdRows ids;
  SH_RETURN_IF_ERROR_AT(
      DecodeIdLists({row_count, vocabulary, ids_of_all}, streams.distinct, &symbols, &bits, &ids),
      kSection);
  std::vector<uint8_t> levels(ids.ids.size()), residuals(row_count);
  LevelModels models;
  SymbolModel residual_model;
  for (uint32_t row = 0; row < row_count; ++row) {
    const uint32_t first = ids.offsets[row], last = ids.offsets[row + 1];
    if (first == last || last - first > ids_max) {
      return MalformedPayload(kSection, "a row of no ids, or too many");
    }
    uint32_t previous = kNonePrevious;
    for (uint32_t i = first; i < last; ++i) {
      previous = symbols.Get(&models[LevelContext(previous, ids.often[i])]);
      levels[i] = static_cast<uint8_t>(previous << kLowBits | bits.Get(kLowBits));
    }
    const uint32_t high = symbols.Get(&residual_model);
    residuals[row] = static_cast<uint8_t>(high << kLowBits | bits.Get(kLowBits));
  }
  if (!symbols.AtEnd() || !bits.AtEnd()) return MalformedPayload(kSection, "bytes are left over");
  const auto before = static_cast<uint32_t>(rows->ids.size());
  rows->ids.insert(rows->ids.end(), ids.ids.begin(), ids.ids.end());
  rows->levels.insert(rows->levels.end(), levels.begin(), levels.end());
  rows->residual_levels.insert(rows->residual_levels.end(), residuals.begin(), residuals.end());
  for (uint32_t row = 1; row <= row_count; ++row) {
    rows->offsets.push_back(before + ids.offsets[row]);
  }
  return absl::OkStatus();
}

void CheckRow(const TopTokenRows& rows, uint32_t row) {
  const uint32_t first = rows.offsets[row], last = rows.offsets[row + 1];
  SH_CHECK(first < last && last <= rows.ids.size() && rows.ids.size() == rows.levels.size(), "row ",
           row);
  int64_t previous = -1;
  for (uint32_t i = first; i < last; ++i) {
    SH_CHECK(rows.ids[i] > previous, "row ", row, " is not in order");
    previous = rows.ids[i];
  }
  SH_CHECK(previous < kVocabularyMax, "id ", previous);
}

// Below it, the sum of fp32 numbers says too little about what is left of 1: half a level is 1/64.
constexpr double kRestBySubtractionMin = 1e-3;

// The `count`-th largest. REQUIRES: 0 < count <= values.size().
float NthLargest(std::vector<float> values, size_t count) {
  const auto nth = values.begin() + static_cast<int64_t>(count) - 1;
  std::nth_element(values.begin(), nth, values.end(), std::greater<>());
  return *nth;
}

// The same without ordering them all: of as many blocks each has one that is not smaller than the
// `count`-th largest of the blocks' largest.
float LargestOfBlocks(absl::Span<const float> values, size_t count) {
  constexpr size_t kBlock = 64;
  const size_t blocks = values.size() / kBlock;
  if (count > blocks) return NthLargest({values.begin(), values.end()}, count);
  std::vector<float> largest(blocks);
  for (size_t b = 0; b < blocks; ++b) {
    const float* block = values.data() + b * kBlock;
    largest[b] = *std::max_element(block, block + kBlock);
  }
  const float bound = NthLargest(std::move(largest), count);
  std::vector<float> left;
  for (const float value : values) {
    if (value >= bound) left.push_back(value);
  }
  return NthLargest(std::move(left), count);
}

}  // namespace

double LevelNats(uint8_t level) { return kNats32[level] / 32.0; }

uint8_t LevelOf(double logprob) {
  SH_CHECK(logprob == logprob);
  const double nats = std::clamp(-logprob, 0.0, LevelNats(kLevels - 1));
  return LevelOfFixed(static_cast<int64_t>(nats * static_cast<double>(kOne)));
}

void AppendTopRow(absl::Span<const float> logprobs, const TopRule& rule, TopTokenRows* rows) {
  SH_CHECK(rule.k > 0 && !logprobs.empty());
  struct Candidate {
    uint8_t level;
    int32_t id;
    auto operator<=>(const Candidate&) const = default;
  };
  const size_t count = std::min<size_t>(rule.k, logprobs.size());
  // Every id of a lower level is among the first `count`.
  const uint8_t cut = LevelOf(LargestOfBlocks(logprobs, count));
  std::vector<Candidate> candidates;
  // Nothing below is of that level; the last level has no end.
  const double last = cut == kLevels - 1 ? HUGE_VAL : LevelNats(static_cast<uint8_t>(cut + 1));
  for (size_t id = 0; id < logprobs.size(); ++id) {
    if (-logprobs[id] > last) continue;
    const uint8_t level = LevelOf(logprobs[id]);
    if (level <= cut) candidates.push_back({level, static_cast<int32_t>(id)});
  }
  const auto end = candidates.begin() + static_cast<int64_t>(count);
  std::partial_sort(candidates.begin(), end, candidates.end());
  candidates.erase(end, candidates.end());
  double taken = 0;
  size_t ids = 0;
  while (ids < count && (ids == 0 || taken < rule.p)) {
    taken += std::exp(static_cast<double>(logprobs[candidates[ids++].id]));
  }
  candidates.resize(ids);
  std::sort(candidates.begin(), candidates.end(),
            [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  double rest = 1 - taken;
  if (rest < kRestBySubtractionMin) {
    rest = 0;
    size_t next = 0;
    for (size_t id = 0; id < logprobs.size(); ++id) {
      if (next < ids && static_cast<size_t>(candidates[next].id) == id) {
        ++next;
      } else {
        rest += std::exp(static_cast<double>(logprobs[id]));
      }
    }
  }
  for (const Candidate& candidate : candidates) {
    rows->ids.push_back(candidate.id);
    rows->levels.push_back(candidate.level);
  }
  rows->offsets.push_back(static_cast<uint32_t>(rows->ids.size()));
  rows->residual_levels.push_back(LevelOf(std::log(rest)));
}

std::vector<float> LogProbabilities(const TopTokenRows& rows, size_t row) {
  std::vector<float> values;
  LogProbabilities(rows, row, &values);
  return values;
}

double LogProbabilities(const TopTokenRows& rows, size_t row, std::vector<float>* values) {
  const uint32_t first = rows.offsets[row], last = rows.offsets[row + 1];
  int64_t sum = kProbability[rows.residual_levels[row]];
  for (uint32_t i = first; i < last; ++i) sum += kProbability[rows.levels[i]];
  const int64_t shift = LnOf(sum);
  const auto value = [shift](uint8_t level) {
    const int64_t nats = kNats32[level] * (kOne / 32) + shift;
    return static_cast<float>(-static_cast<double>(nats) / static_cast<double>(kOne));
  };
  values->clear();
  for (uint32_t i = first; i < last; ++i) values->push_back(value(rows.levels[i]));
  values->push_back(value(rows.residual_levels[row]));
  return static_cast<double>(shift) / static_cast<double>(kOne);
}

TopTokenRows KeepTop(const TopTokenRows& rows, uint32_t k) {
  SH_CHECK(k > 0);
  TopTokenRows kept;
  std::vector<uint32_t> order;
  for (size_t row = 0; row < rows.rows(); ++row) {
    order.resize(rows.offsets[row + 1] - rows.offsets[row]);
    std::iota(order.begin(), order.end(), rows.offsets[row]);
    const size_t count = std::min<size_t>(k, order.size());
    // Stable: ids ascend, so the lower of two equals comes first.
    std::stable_sort(order.begin(), order.end(),
                     [&](uint32_t a, uint32_t b) { return rows.levels[a] < rows.levels[b]; });
    int64_t residual = kProbability[rows.residual_levels[row]];
    for (size_t i = count; i < order.size(); ++i) residual += kProbability[rows.levels[order[i]]];
    std::sort(order.begin(), order.begin() + static_cast<int64_t>(count));
    for (size_t i = 0; i < count; ++i) {
      kept.ids.push_back(rows.ids[order[i]]);
      kept.levels.push_back(rows.levels[order[i]]);
    }
    kept.offsets.push_back(static_cast<uint32_t>(kept.ids.size()));
    kept.residual_levels.push_back(count == order.size() ? rows.residual_levels[row]
                                                         : LevelOfFixed(-LnOf(residual)));
  }
  return kept;
}

std::string EncodeTopTokens(const TopTokenRows& rows, uint32_t begin, uint32_t end) {
  SH_CHECK(begin < end && end <= rows.rows(), "rows ", begin, " to ", end);
  SH_CHECK(rows.residual_levels.size() == rows.rows());
  for (uint32_t row = begin; row < end; ++row) CheckRow(rows, row);
  const uint32_t first = rows.offsets[begin];
  const auto ids = absl::MakeSpan(rows.ids).subspan(first, rows.offsets[end] - first);
  SH_CHECK(ids.size() <= kTopIdsMax, ids.size(), " ids in a part");
  RangeEncoder symbols;
  std::string bit_bytes;
  BitWriter bits(bit_bytes);
  const EncodedIdLists lists = EncodeIdLists(
      absl::MakeSpan(rows.offsets).subspan(begin, end - begin + 1), ids, &symbols, &bits);
  LevelModels models;
  SymbolModel residual_model;
  const auto put = [&](uint8_t level, SymbolModel* model) {
    symbols.Put(model, level >> kLowBits);
    bits.Put(level % (1u << kLowBits), kLowBits);
  };
  for (uint32_t row = begin; row < end; ++row) {
    uint32_t previous = kNonePrevious;
    for (uint32_t i = rows.offsets[row]; i < rows.offsets[row + 1]; ++i) {
      put(rows.levels[i], &models[LevelContext(previous, lists.often[i - first])]);
      previous = rows.levels[i] >> kLowBits;
    }
    put(rows.residual_levels[row], &residual_model);
  }
  bits.Finish();
  return JoinStreams(CodecId::kTopTokens, lists.distinct, symbols.Finish(), bit_bytes);
}

absl::Status DecodeTopTokens(absl::string_view payload, uint32_t row_count, uint32_t vocabulary,
                             uint32_t ids_max, TopTokenRows* rows, Instructions instructions) {
  SH_CHECK(ids_max > 0);
  SH_RETURN_IF_ERROR(TakeCodec(kSection, CodecId::kTopTokens, &payload));
  if (row_count > kTopIdsMax) return MalformedPayload(kSection, "too many rows");
  return instructions == Instructions::kPortable
             ? DecodeRows<true>(payload, row_count, vocabulary, ids_max, rows)
             : DecodeRows<false>(payload, row_count, vocabulary, ids_max, rows);
}

}  // namespace stillhouse

#include "storage/codec/id_lists.h"

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace stillhouse {
namespace {

constexpr int kLongGapWidth = kSymbols - 1;  // from 2^15 on a gap's width stands in bits
constexpr int kLongGapBits = 5;
constexpr uint32_t kUsualGapWidth = 4;  // believed of what comes before the first id
constexpr int kDigitBits = 11;          // of an id, in sorting
constexpr uint32_t kSkipStep = kSymbols - 1;

// Priors, as SymbolModel reads them: how SmolLM2-135M's 50 draws a token on English text were
// distributed. Models learn what differs.
constexpr std::array<absl::string_view, 10> kGapPriors = {
    "fedb842000000000", "deeda73000000000", "cdedca6200000000", "bcdedca620000000",
    "9acdedc950000000", "79bcdedb82000000", "689bddeda4000000", "578acdedc7200000",
    "647abceed9300000", "65669bdedbb73210"};
constexpr std::array<absl::string_view, 10> kTimesPriors = {
    "fdbaa88764530000", "fdb9977553200000", "fdb9977431000000", "fda8855210000000",
    "fc97643110000000", "fc86632000000000", "fb75521000000000", "fb74411000000000",
    "fb74310000000000", "fa73641100000000"};

uint8_t OftenClass(uint32_t times) { return times == 1 ? 0 : times < 8 ? 1 : 2; }

// How an id's next row is coded when `available` rows are left and `wanted` of them, fewer, hold
// the id. The number of rows passed over is a symbol of a context and `shift` low bits; while it
// is kSkipStep units or more, the symbol kSkipStep passes over so many.
struct RowStep {
  static constexpr uint32_t kLastContexts = kSymbols;  // wanted = 1: any row is as likely
  static constexpr uint32_t kNearContexts = 16;        // mean below 4: by quarters
  static constexpr uint32_t kContexts = kLastContexts + kNearContexts + 64;

  uint32_t context;
  int shift;

  RowStep(uint32_t available, uint32_t wanted) {
    if (wanted == 1) {
      shift = std::max(0, static_cast<int>(std::bit_width(available - 1)) - 4);
      context = (available - 1) >> shift;
      return;
    }
    const uint32_t quarters = 4 * (available - wanted) / (wanted + 1);  // of the mean
    shift = std::max(0, static_cast<int>(std::bit_width(quarters)) - 4);
    context = shift == 0 ? kLastContexts + quarters
                         : kLastContexts + kNearContexts + 2 * static_cast<uint32_t>(shift - 1) +
                               (quarters >> (shift + 2)) % 2;
  }
};

// Geometric with this mean in eighths, the last symbol being all that is beyond.
SymbolModel Geometric(uint32_t eighths) {
  SymbolModel::Weights weights;
  uint32_t rest = 512u << 8;
  for (int i = 0; i < kSymbols; ++i) {
    const uint32_t beyond = rest / (eighths + 8) * eighths;
    weights[i] =
        static_cast<uint16_t>(std::max(1u, (i < kSymbols - 1 ? rest - beyond : rest) >> 8));
    rest = beyond;
  }
  return SymbolModel(weights);
}

SymbolModel UniformUpTo(uint32_t last) {
  SymbolModel::Weights weights{};
  for (uint32_t i = 0; i <= last; ++i) weights[i] = 64;
  return SymbolModel(weights);
}

struct Models {
  std::array<SymbolModel, kSymbols> gap;    // by the gaps of the two ids before
  std::array<SymbolModel, kSymbols> times;  // by the gap before the id
  std::array<SymbolModel, RowStep::kContexts> row;

  // As they are before the first id. Thread-safe.
  static const Models& Untaught() {
    static const Models models = [] {
      Models m;
      for (uint32_t i = 0; i < kSymbols; ++i) {
        m.gap[i] = SymbolModel(kGapPriors[std::min<size_t>(i, kGapPriors.size() - 1)]);
        m.times[i] = SymbolModel(kTimesPriors[std::min<size_t>(i, kTimesPriors.size() - 1)]);
        m.row[i] = UniformUpTo(i);
        m.row[RowStep::kLastContexts + i] = Geometric(2 * i + 1);
      }
      for (uint32_t i = RowStep::kLastContexts + RowStep::kNearContexts; i < RowStep::kContexts;
           ++i) {
        m.row[i] = Geometric(i % 2 == 0 ? 20 : 28);
      }
      return m;
    }();
    return models;
  }
};

// The model of the next gap, from the two before.
class GapContext {
 public:
  uint32_t Now() const { return (last_ + before_) / 2; }
  void Add(uint32_t width) { before_ = std::exchange(last_, width); }

 private:
  uint32_t last_ = kUsualGapWidth;
  uint32_t before_ = kUsualGapWidth;
};

struct Posting {
  uint32_t id;
  uint32_t row;
  uint32_t place;  // in the ids as given
};

std::vector<Posting> PostingsById(absl::Span<const uint32_t> offsets,
                                  absl::Span<const int32_t> ids) {
  std::vector<Posting> postings(ids.size()), sorted(ids.size());
  uint64_t largest = 0;  // wider than an id: the last shift may be, too
  for (uint32_t row = 0; row + 1 < offsets.size(); ++row) {
    for (uint32_t i = offsets[row] - offsets[0]; i < offsets[row + 1] - offsets[0]; ++i) {
      postings[i] = {static_cast<uint32_t>(ids[i]), row, i};
      largest = std::max<uint64_t>(largest, postings[i].id);
    }
  }
  constexpr uint32_t kDigits = 1u << kDigitBits;
  for (int shift = 0; shift == 0 || (largest >> shift) != 0; shift += kDigitBits) {
    std::array<uint32_t, kDigits + 1> begins{};
    for (const Posting& p : postings) ++begins[((p.id >> shift) % kDigits) + 1];
    for (uint32_t i = 0; i < kDigits; ++i) begins[i + 1] += begins[i];
    for (const Posting& p : postings) sorted[begins[(p.id >> shift) % kDigits]++] = p;
    postings.swap(sorted);
  }
  return postings;
}

void EncodeRowsOfId(absl::Span<const Posting> postings, uint32_t row_count, Models* models,
                    RangeEncoder* symbols, BitWriter* bits) {
  uint32_t next = 0;
  for (size_t i = 0; i < postings.size(); ++i) {
    const uint32_t available = row_count - next;
    const auto wanted = static_cast<uint32_t>(postings.size() - i);
    if (available == wanted) return;  // all that are left
    const RowStep step(available, wanted);
    SymbolModel* model = &models->row[step.context];
    const uint32_t skipped = postings[i].row - next;
    uint32_t units = skipped >> step.shift;
    if (wanted > 1) {
      for (; units >= kSkipStep; units -= kSkipStep) symbols->Put(model, kSkipStep);
    }
    symbols->Put(model, units);
    bits->Put(skipped & ((1u << step.shift) - 1), step.shift);
    next = postings[i].row + 1;
  }
}

absl::Status Malformed(absl::string_view what) {
  return absl::DataLossError(absl::StrCat("malformed lists of ids: ", what));
}

// Appends the rows of one id.
template <bool kPortable>
absl::Status DecodeRowsOfId(uint32_t row_count, uint32_t times, Models* models,
                            RangeDecoder<kPortable>* symbols, BitReader* bits,
                            std::vector<uint32_t>* rows) {
  const size_t begin = rows->size();
  rows->resize(begin + times);
  uint32_t* out = rows->data() + begin;
  uint32_t next = 0;
  for (uint32_t wanted = times; wanted > 0; --wanted) {
    const uint32_t available = row_count - next;
    if (available == wanted) {
      for (; wanted > 0; --wanted) *out++ = next++;
      return absl::OkStatus();
    }
    const RowStep step(available, wanted);
    SymbolModel* model = &models->row[step.context];
    uint32_t units = symbols->Get(model);
    if (units == kSkipStep && wanted > 1) {
      for (uint32_t more = kSkipStep; more == kSkipStep && units <= row_count;) {
        units += more = symbols->Get(model);
      }
    }
    const uint64_t skipped = (static_cast<uint64_t>(units) << step.shift) + bits->Get(step.shift);
    if (skipped > available - wanted) return Malformed("a row beyond the last");
    next += static_cast<uint32_t>(skipped);
    *out++ = next++;
  }
  return absl::OkStatus();
}

// The lists as they are stored: id by id, with its rows.
struct Lists {
  struct List {
    uint32_t id;
    uint32_t end;  // in rows
  };
  std::vector<List> lists;
  std::vector<uint32_t> rows;
};

// Row by row. Ids ascend within a row because the lists do.
void Turn(const Lists& lists, uint32_t row_count, IdRows* out) {
  std::vector<uint32_t> next(row_count + 1, 0);
  for (const uint32_t row : lists.rows) ++next[row + 1];
  for (uint32_t row = 0; row < row_count; ++row) next[row + 1] += next[row];
  out->offsets = next;
  out->ids.resize(lists.rows.size());
  out->often.resize(lists.rows.size());
  uint32_t i = 0;
  for (const Lists::List& list : lists.lists) {
    const uint8_t often = OftenClass(list.end - i);
    for (; i < list.end; ++i) {
      const uint32_t at = next[lists.rows[i]]++;
      out->ids[at] = static_cast<int32_t>(list.id);
      out->often[at] = often;
    }
  }
}

}  // namespace

EncodedIdLists EncodeIdLists(absl::Span<const uint32_t> offsets, absl::Span<const int32_t> ids,
                             RangeEncoder* symbols, BitWriter* bits) {
  const auto row_count = static_cast<uint32_t>(offsets.size() - 1);
  const std::vector<Posting> postings = PostingsById(offsets, ids);
  EncodedIdLists result;
  result.often.resize(ids.size());
  Models models = Models::Untaught();
  GapContext context;
  int64_t previous = -1;
  for (size_t begin = 0, end = 0; begin < postings.size(); begin = end) {
    while (end < postings.size() && postings[end].id == postings[begin].id) ++end;
    const auto gap = static_cast<uint32_t>(postings[begin].id - previous);
    previous = postings[begin].id;
    const int width = std::bit_width(gap) - 1;
    const auto symbol = static_cast<uint32_t>(std::min(width, kLongGapWidth));
    symbols->Put(&models.gap[context.Now()], symbol);
    if (width >= kLongGapWidth) bits->Put(static_cast<uint64_t>(width), kLongGapBits);
    bits->Put(gap & ((1u << width) - 1), width);
    context.Add(symbol);
    ++result.distinct;
    const auto times = static_cast<uint32_t>(end - begin);
    Magnitude::Put(times - 1, &models.times[symbol], symbols, bits);
    for (size_t i = begin; i < end; ++i) result.often[postings[i].place] = OftenClass(times);
    EncodeRowsOfId(absl::MakeSpan(postings).subspan(begin, times), row_count, &models, symbols,
                   bits);
  }
  return result;
}

template <bool kPortable>
absl::Status DecodeIdLists(const IdListsLimits& limits, uint32_t distinct,
                           RangeDecoder<kPortable>* symbols, BitReader* bits, IdRows* rows) {
  Lists lists;
  Models models = Models::Untaught();
  GapContext context;
  int64_t id = -1;
  for (uint32_t i = 0; i < distinct; ++i) {
    const uint32_t symbol = symbols->Get(&models.gap[context.Now()]);
    context.Add(symbol);
    const int width = symbol < kLongGapWidth ? static_cast<int>(symbol)
                                             : static_cast<int>(bits->Get(kLongGapBits));
    id += static_cast<int64_t>(1ull << width | bits->Get(width));
    if (id >= limits.vocabulary) {
      return Malformed(absl::StrCat("id ", id, " of a vocabulary of ", limits.vocabulary));
    }
    const uint32_t times = Magnitude::Get(&models.times[symbol], symbols, bits) + 1;
    if (times > limits.rows || lists.rows.size() + times > limits.ids) {
      return Malformed("more ids than its rows can hold");
    }
    SH_RETURN_IF_ERROR(DecodeRowsOfId(limits.rows, times, &models, symbols, bits, &lists.rows));
    if (!symbols->ok() || !bits->ok()) return Malformed("they are cut short");
    lists.lists.push_back({static_cast<uint32_t>(id), static_cast<uint32_t>(lists.rows.size())});
  }
  Turn(lists, limits.rows, rows);
  return absl::OkStatus();
}

template absl::Status DecodeIdLists<false>(const IdListsLimits&, uint32_t, RangeDecoder<false>*,
                                           BitReader*, IdRows*);
template absl::Status DecodeIdLists<true>(const IdListsLimits&, uint32_t, RangeDecoder<true>*,
                                          BitReader*, IdRows*);

}  // namespace stillhouse

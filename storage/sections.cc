#include "storage/sections.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/status.h"

namespace stillhouse {
namespace {

constexpr uint32_t kOne = 1'000'000;  // p in millionths

// Bytes of one row as plain numbers.
uint64_t PlainRowBytes(const SectionSpec& spec) {
  switch (spec.kind) {
    case SectionKind::kStats:
      return 20;
    case SectionKind::kLogitsSampled:
      return 4 + 6ull * spec.draws;
    case SectionKind::kLogitsTopK:
    case SectionKind::kLogitsTopP:
      return 8 + 8ull * spec.k;
    case SectionKind::kHiddenLast:
    case SectionKind::kHiddenLayer:
      return 2ull * spec.hidden_size;  // as decoded, whatever the dtype
  }
  SH_CHECK(false, "section kind ", static_cast<int>(spec.kind));
}

// A decimal in [0, max] without leading zeros.
bool ParseNumber(absl::string_view text, uint32_t max, uint32_t* value) {
  return !text.empty() && (text[0] != '0' || text.size() == 1) &&
         std::all_of(text.begin(), text.end(), absl::ascii_isdigit) &&
         absl::SimpleAtoi(text, value) && *value <= max;
}
bool ParsePositive(absl::string_view text, uint32_t max, uint32_t* value) {
  return ParseNumber(text, max, value) && *value > 0;
}

// "0." and digits, the last of them not 0.
bool ParseMillionths(absl::string_view text, uint32_t* millionths) {
  constexpr size_t kDigits = 6;
  if (!absl::ConsumePrefix(&text, "0.") || text.empty() || text.size() > kDigits ||
      text.back() == '0' || !std::all_of(text.begin(), text.end(), absl::ascii_isdigit)) {
    return false;
  }
  const std::string digits = absl::StrCat(text, std::string(kDigits - text.size(), '0'));
  return absl::SimpleAtoi(digits, millionths);
}
std::string FormatMillionths(uint32_t millionths) {
  std::string digits = absl::StrCat(kOne + millionths).substr(1);
  digits.erase(digits.find_last_not_of('0') + 1);
  return absl::StrCat("0.", digits);
}

// Cuts `text` at the first `mark`; false without one.
bool CutAt(absl::string_view* text, absl::string_view mark, absl::string_view* before) {
  const size_t at = text->find(mark);
  if (at == absl::string_view::npos) return false;
  *before = text->substr(0, at);
  text->remove_prefix(at + mark.size());
  return true;
}

// What stands behind "hidden/".
bool ParseHidden(absl::string_view text, SectionSpec* spec) {
  absl::string_view which, size;
  if (!CutAt(&text, "?hidden_size=", &which) || !CutAt(&text, "&dtype=", &size)) return false;
  spec->kind = which == "last" ? SectionKind::kHiddenLast : SectionKind::kHiddenLayer;
  spec->dtype = text == "int8" ? HiddenDtype::kInt8 : HiddenDtype::kBf16;
  return (which == "last" || ParseNumber(which, kLayerMax, &spec->layer)) &&
         ParsePositive(size, kHiddenSizeMax, &spec->hidden_size) &&
         (text == "bf16" || text == "int8");
}

bool Parse(absl::string_view text, SectionSpec* spec) {
  if (text == "stats") return true;
  if (absl::ConsumePrefix(&text, "logits/sampled?draws=")) {
    spec->kind = SectionKind::kLogitsSampled;
    return ParsePositive(text, kDrawsMax, &spec->draws);
  }
  if (absl::ConsumePrefix(&text, "logits/topk?k=")) {
    spec->kind = SectionKind::kLogitsTopK;
    return ParsePositive(text, kTopMax, &spec->k);
  }
  if (absl::ConsumePrefix(&text, "logits/topp?p=")) {
    spec->kind = SectionKind::kLogitsTopP;
    absl::string_view p;
    return CutAt(&text, "&k_max=", &p) && ParseMillionths(p, &spec->p_millionths) &&
           ParsePositive(text, kTopMax, &spec->k);
  }
  return absl::ConsumePrefix(&text, "hidden/") && ParseHidden(text, spec);
}

}  // namespace

std::string SectionSpec::Name() const {
  switch (kind) {
    case SectionKind::kStats:
      return "stats";
    case SectionKind::kLogitsSampled:
      return "logits/sampled";
    case SectionKind::kLogitsTopK:
      return "logits/topk";
    case SectionKind::kLogitsTopP:
      return "logits/topp";
    case SectionKind::kHiddenLast:
      return "hidden/last";
    case SectionKind::kHiddenLayer:
      return absl::StrCat("hidden/", layer);
  }
  SH_CHECK(false, "section kind ", static_cast<int>(kind));
}

std::string SectionSpec::Canonical() const {
  switch (kind) {
    case SectionKind::kStats:
      return Name();
    case SectionKind::kLogitsSampled:
      SH_CHECK(draws >= 1 && draws <= kDrawsMax, "draws ", draws);
      return absl::StrCat(Name(), "?draws=", draws);
    case SectionKind::kLogitsTopK:
      SH_CHECK(k >= 1 && k <= kTopMax, "k ", k);
      return absl::StrCat(Name(), "?k=", k);
    case SectionKind::kLogitsTopP:
      SH_CHECK(k >= 1 && k <= kTopMax && p_millionths >= 1 && p_millionths < kOne, "k ", k, ", p ",
               p_millionths);
      return absl::StrCat(Name(), "?p=", FormatMillionths(p_millionths), "&k_max=", k);
    case SectionKind::kHiddenLast:
    case SectionKind::kHiddenLayer:
      SH_CHECK(hidden_size >= 1 && hidden_size <= kHiddenSizeMax && layer <= kLayerMax,
               "hidden size ", hidden_size, ", layer ", layer);
      return absl::StrCat(Name(), "?hidden_size=", hidden_size,
                          dtype == HiddenDtype::kInt8 ? "&dtype=int8" : "&dtype=bf16");
  }
  SH_CHECK(false, "section kind ", static_cast<int>(kind));
}

uint32_t SectionSpec::RowsPerPart() const {
  return static_cast<uint32_t>(kPartBytesMax / PlainRowBytes(*this));
}

absl::StatusOr<SectionSpec> ParseSectionSpec(absl::string_view canonical) {
  SectionSpec spec;
  if (Parse(canonical, &spec)) return spec;
  return absl::InvalidArgumentError(absl::StrCat(
      "'", absl::CHexEscape(canonical.substr(0, 100)),
      "' is no section of this version: expected stats, logits/sampled?draws=N, logits/topk?k=N, ",
      "logits/topp?p=0.N&k_max=N or hidden/last?hidden_size=N&dtype=bf16 (or hidden/LAYER, int8)"));
}

Digest SectionKey(const Digest& teacher, const Digest& document, const SectionSpec& spec) {
  return Sha256()
      .AddField("stillhouse section 1")
      .AddDigest(teacher)
      .AddDigest(document)
      .AddField(spec.Canonical())
      .AddField("all positions")
      .Finish();
}

void AppendRow(const StatsRows& from, size_t row, StatsRows* to) {
  to->entropy.push_back(from.entropy[row]);
  to->logsumexp.push_back(from.logsumexp[row]);
  to->top1_id.push_back(from.top1_id[row]);
  to->top1_logprob.push_back(from.top1_logprob[row]);
  to->next_logprob.push_back(from.next_logprob[row]);
}

void AppendRow(const SampledRows& from, size_t row, SampledRows* to) {
  const uint32_t begin = from.offsets[row], end = from.offsets[row + 1];
  to->draws = from.draws;
  to->ids.insert(to->ids.end(), from.ids.begin() + begin, from.ids.begin() + end);
  to->counts.insert(to->counts.end(), from.counts.begin() + begin, from.counts.begin() + end);
  to->offsets.push_back(static_cast<uint32_t>(to->ids.size()));
}

void AppendRow(const TopTokenRows& from, size_t row, TopTokenRows* to) {
  const uint32_t begin = from.offsets[row], end = from.offsets[row + 1];
  to->ids.insert(to->ids.end(), from.ids.begin() + begin, from.ids.begin() + end);
  to->levels.insert(to->levels.end(), from.levels.begin() + begin, from.levels.begin() + end);
  to->offsets.push_back(static_cast<uint32_t>(to->ids.size()));
  to->residual_levels.push_back(from.residual_levels[row]);
}

void AppendRow(const HiddenRows& from, size_t row, HiddenRows* to) {
  const auto begin = from.values.begin() + static_cast<ptrdiff_t>(row * from.hidden_size);
  to->hidden_size = from.hidden_size;
  to->values.insert(to->values.end(), begin, begin + from.hidden_size);
}

}  // namespace stillhouse

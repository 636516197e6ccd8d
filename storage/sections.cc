#include "storage/sections.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/status.h"

namespace stillhouse {
namespace {

constexpr uint32_t kDrawsMax = 65535;          // counts are 16 bits
constexpr uint32_t kHiddenSizeMax = 1u << 20;  // so that a row fits a part

// Bytes of one row as plain numbers.
uint64_t PlainRowBytes(const SectionSpec& spec) {
  switch (spec.kind) {
    case SectionKind::kStats:
      return 20;
    case SectionKind::kLogitsSampled:
      return 4 + 6ull * spec.draws;
    case SectionKind::kHiddenLast:
      return 2ull * spec.hidden_size;
  }
  SH_CHECK(false, "section kind ", static_cast<int>(spec.kind));
}

// A decimal without leading zeros in [1, max]: one text for one number, since texts are hashed.
bool ParseNumber(absl::string_view text, uint32_t max, uint32_t* value) {
  return !text.empty() && text[0] != '0' &&
         std::all_of(text.begin(), text.end(), absl::ascii_isdigit) &&
         absl::SimpleAtoi(text, value) && *value <= max;
}

}  // namespace

std::string SectionSpec::Name() const {
  switch (kind) {
    case SectionKind::kStats:
      return "stats";
    case SectionKind::kLogitsSampled:
      return "logits/sampled";
    case SectionKind::kHiddenLast:
      return "hidden/last";
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
    case SectionKind::kHiddenLast:
      SH_CHECK(hidden_size >= 1 && hidden_size <= kHiddenSizeMax, "hidden size ", hidden_size);
      return absl::StrCat(Name(), "?hidden_size=", hidden_size, "&dtype=bf16");
  }
  SH_CHECK(false, "section kind ", static_cast<int>(kind));
}

uint32_t SectionSpec::RowsPerPart() const {
  return static_cast<uint32_t>(kPartBytesMax / PlainRowBytes(*this));
}

absl::StatusOr<SectionSpec> ParseSectionSpec(absl::string_view canonical) {
  SectionSpec spec;
  absl::string_view rest = canonical;
  if (rest == "stats") return spec;
  if (absl::ConsumePrefix(&rest, "logits/sampled?draws=")) {
    spec.kind = SectionKind::kLogitsSampled;
    if (ParseNumber(rest, kDrawsMax, &spec.draws)) return spec;
  } else if (absl::ConsumePrefix(&rest, "hidden/last?hidden_size=") &&
             absl::ConsumeSuffix(&rest, "&dtype=bf16")) {
    spec.kind = SectionKind::kHiddenLast;
    if (ParseNumber(rest, kHiddenSizeMax, &spec.hidden_size)) return spec;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "'", canonical.substr(0, 100), "' is no section of this version: expected stats, ",
      "logits/sampled?draws=N or hidden/last?hidden_size=N&dtype=bf16"));
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

}  // namespace stillhouse

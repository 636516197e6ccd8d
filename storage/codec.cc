#include "storage/codec.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/byte_io.h"
#include "common/status.h"
#include "storage/codec/payload.h"
#include "storage/codec/top_tokens.h"

namespace stillhouse {
namespace {

constexpr char kHiddenSection[] = "hidden states";

bool Bf16IsFinite(uint16_t bits) { return (bits & 0x7f80u) != 0x7f80u; }

absl::StatusOr<std::string> Canonical(const StatsRows& rows) {
  ByteWriter out;
  for (size_t row = 0; row < rows.rows(); ++row) {
    out.Put(rows.entropy[row]);
    out.Put(rows.logsumexp[row]);
    out.Put(rows.top1_id[row]);
    out.Put(rows.top1_logprob[row]);
    out.Put(rows.next_logprob[row]);
  }
  return out.Take();
}

absl::StatusOr<std::string> Canonical(const SampledRows& rows) {
  ByteWriter out;
  for (size_t row = 0; row < rows.rows(); ++row) {
    out.Put(rows.offsets[row + 1] - rows.offsets[row]);
    for (uint32_t i = rows.offsets[row]; i < rows.offsets[row + 1]; ++i) {
      out.Put(rows.ids[i]);
      out.Put(rows.counts[i]);
    }
  }
  return out.Take();
}

absl::StatusOr<std::string> Canonical(const TopTokenRows& rows) {
  ByteWriter out;
  std::vector<float> values;
  for (size_t row = 0; row < rows.rows(); ++row) {
    const double nats = LogProbabilities(rows, row, &values);
    if (std::abs(nats) > kTopSumErrorMax) {
      return MalformedPayload("logits/topk or topp", absl::StrCat("the probabilities of row ", row,
                                                                  " sum to ", std::exp(nats)));
    }
    out.Put(rows.offsets[row + 1] - rows.offsets[row]);
    for (uint32_t i = rows.offsets[row]; i < rows.offsets[row + 1]; ++i) {
      out.Put(rows.ids[i]);
      out.Put(values[i - rows.offsets[row]]);
    }
    out.Put(values.back());
  }
  return out.Take();
}

absl::StatusOr<std::string> Canonical(const HiddenRows& rows) {
  if (!std::all_of(rows.values.begin(), rows.values.end(), Bf16IsFinite)) {
    return MalformedPayload(kHiddenSection, "a value is not finite");
  }
  return std::string(reinterpret_cast<const char*>(rows.values.data()),
                     rows.values.size() * sizeof(uint16_t));
}

}  // namespace

std::string EncodeHidden(const HiddenRows& rows, uint32_t begin, uint32_t end) {
  SH_CHECK(begin < end && end <= rows.rows(), "rows ", begin, " to ", end);
  std::string out(1, static_cast<char>(CodecId::kHiddenBf16));
  const size_t width = rows.hidden_size;
  out.append(reinterpret_cast<const char*>(rows.values.data() + begin * width),
             (end - begin) * width * sizeof(uint16_t));
  return out;
}

absl::Status DecodeHidden(absl::string_view payload, uint32_t row_count, HiddenRows* rows) {
  SH_CHECK(rows->hidden_size > 0);
  SH_RETURN_IF_ERROR(TakeCodec(kHiddenSection, CodecId::kHiddenBf16, &payload));
  const uint64_t values = static_cast<uint64_t>(row_count) * rows->hidden_size;
  if (payload.size() != values * sizeof(uint16_t)) {
    return MalformedPayload(kHiddenSection, absl::StrCat(payload.size(), " bytes for ", row_count,
                                                         " rows of ", rows->hidden_size));
  }
  const size_t before = rows->values.size();
  rows->values.resize(before + values);
  std::memcpy(rows->values.data() + before, payload.data(), payload.size());
  return absl::OkStatus();
}

SectionRows NoRows(const SectionSpec& spec) {
  switch (spec.kind) {
    case SectionKind::kStats:
      return StatsRows{};
    case SectionKind::kLogitsSampled: {
      SampledRows rows;
      rows.draws = spec.draws;
      return rows;
    }
    case SectionKind::kLogitsTopK:
    case SectionKind::kLogitsTopP:
      return TopTokenRows{};
    case SectionKind::kHiddenLast:
    case SectionKind::kHiddenLayer: {
      HiddenRows rows;
      rows.hidden_size = spec.hidden_size;
      return rows;
    }
  }
  SH_CHECK(false, "section kind ", static_cast<int>(spec.kind));
}

void AppendRow(const SectionRows& from, size_t row, SectionRows* to) {
  SH_CHECK(from.index() == to->index(), "rows of two kinds");
  std::visit(
      [&](const auto& rows) { AppendRow(rows, row, &std::get<std::decay_t<decltype(rows)>>(*to)); },
      from);
}

size_t RowCount(const SectionRows& rows) {
  return std::visit([](const auto& some) { return some.rows(); }, rows);
}

std::string EncodeSection(const SectionSpec& spec, const SectionRows& rows, uint32_t begin,
                          uint32_t end) {
  SH_CHECK(rows.index() == NoRows(spec).index(), "rows of another kind than ", spec.Name());
  if (const auto* stats = std::get_if<StatsRows>(&rows)) return EncodeStats(*stats, begin, end);
  if (const auto* sampled = std::get_if<SampledRows>(&rows)) {
    SH_CHECK(sampled->draws == spec.draws, "rows of ", sampled->draws, " draws");
    return EncodeSampled(*sampled, begin, end);
  }
  if (const auto* top = std::get_if<TopTokenRows>(&rows)) return EncodeTopTokens(*top, begin, end);
  const auto& hidden = std::get<HiddenRows>(rows);
  SH_CHECK(hidden.hidden_size == spec.hidden_size, "rows of ", hidden.hidden_size, " values");
  return spec.dtype == HiddenDtype::kInt8 ? EncodeHiddenInt8(hidden, begin, end)
                                          : EncodeHidden(hidden, begin, end);
}

absl::Status DecodeSection(const SectionSpec& spec, absl::string_view payload, uint32_t row_count,
                           uint32_t vocabulary, SectionRows* rows) {
  SH_CHECK(rows->index() == NoRows(spec).index(), "rows of another kind than ", spec.Name());
  if (auto* stats = std::get_if<StatsRows>(rows)) return DecodeStats(payload, row_count, stats);
  if (auto* sampled = std::get_if<SampledRows>(rows)) {
    return DecodeSampled(payload, row_count, vocabulary, sampled);
  }
  if (auto* top = std::get_if<TopTokenRows>(rows)) {
    return DecodeTopTokens(payload, row_count, vocabulary, spec.k, top);
  }
  auto& hidden = std::get<HiddenRows>(*rows);
  return spec.dtype == HiddenDtype::kInt8 ? DecodeHiddenInt8(payload, row_count, &hidden)
                                          : DecodeHidden(payload, row_count, &hidden);
}

absl::StatusOr<std::string> CanonicalValues(const SectionSpec& spec, absl::string_view payload,
                                            uint32_t row_count) {
  SectionRows rows = NoRows(spec);
  SH_RETURN_IF_ERROR(DecodeSection(spec, payload, row_count, kVocabularyMax, &rows));
  return CanonicalValues(rows);
}

absl::StatusOr<std::string> CanonicalValues(const SectionRows& rows) {
  return std::visit([](const auto& values) { return Canonical(values); }, rows);
}

}  // namespace stillhouse

// stats: columns in fixed point, packed to the bits that the part needs.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/byte_io.h"
#include "common/status.h"
#include "storage/bit_io.h"
#include "storage/codec.h"
#include "storage/codec/payload.h"

namespace stillhouse {
namespace {

constexpr double kStatsScale = 4096;  // 1 / (2 kStatsErrorMax)
constexpr int kStatsWidthMax = 40;    // bits of a column
constexpr int kStatsColumns = 5;

uint64_t ZigZag(int64_t value) {
  return (static_cast<uint64_t>(value) << 1) ^ static_cast<uint64_t>(value >> 63);
}
int64_t UnZigZag(uint64_t value) {
  return static_cast<int64_t>(value >> 1) ^ -static_cast<int64_t>(value & 1);
}

int64_t ToFixed(float value) {
  SH_CHECK(std::isfinite(value) && std::abs(value) <= kStatsMagnitudeMax, "value ", value);
  return std::llround(static_cast<double>(value) * kStatsScale);
}
float FromFixed(int64_t value) {
  return static_cast<float>(static_cast<double>(value) / kStatsScale);
}

// One column: its least value, the width of what is above it, then the rows.
void EncodeColumn(const std::vector<int64_t>& column, std::string* out) {
  const auto [least, most] = std::minmax_element(column.begin(), column.end());
  const int width = std::bit_width(static_cast<uint64_t>(*most - *least));
  ByteWriter head;
  head.PutVarint(ZigZag(*least));
  head.Put<uint8_t>(width);
  out->append(head.bytes());
  BitWriter bits(*out);
  for (const int64_t value : column) bits.Put(static_cast<uint64_t>(value - *least), width);
  bits.Finish();
}

absl::Status DecodeColumn(ByteReader* reader, uint32_t row_count, std::vector<int64_t>* column) {
  uint64_t least = 0;
  uint8_t width = 0;
  absl::string_view packed;
  if (!reader->GetVarint(&least) || !reader->Get(&width))
    return MalformedPayload("stats", "it is cut short");
  if (width > kStatsWidthMax || least >= (1ull << kStatsWidthMax)) {
    return MalformedPayload("stats", "a column is too wide");
  }
  if (!reader->GetRaw((static_cast<uint64_t>(row_count) * width + 7) / 8, &packed)) {
    return MalformedPayload("stats", "it is cut short");
  }
  BitReader bits(packed);
  column->resize(row_count);
  for (int64_t& value : *column) value = UnZigZag(least) + static_cast<int64_t>(bits.Get(width));
  if (!bits.AtEnd()) return MalformedPayload("stats", "bits are left over");
  return absl::OkStatus();
}

}  // namespace

std::string EncodeStats(const StatsRows& rows, uint32_t begin, uint32_t end) {
  SH_CHECK(begin < end && end <= rows.rows(), "rows ", begin, " to ", end);
  std::string out(1, static_cast<char>(CodecId::kStatsFixed));
  std::vector<int64_t> column(end - begin);
  const auto add = [&](const auto& values, auto convert) {
    SH_CHECK(values.size() == rows.rows(), "columns of stats differ in length");
    std::transform(values.begin() + begin, values.begin() + end, column.begin(), convert);
    EncodeColumn(column, &out);
  };
  add(rows.entropy, ToFixed);
  add(rows.logsumexp, ToFixed);
  add(rows.top1_id, [](int32_t id) { return static_cast<int64_t>(id); });
  add(rows.top1_logprob, ToFixed);
  add(rows.next_logprob, ToFixed);
  return out;
}

absl::Status DecodeStats(absl::string_view payload, uint32_t row_count, StatsRows* rows) {
  SH_RETURN_IF_ERROR(TakeCodec("stats", CodecId::kStatsFixed, &payload));
  // A column of equal values takes no bits at all, so the payload does not bound the rows.
  if (row_count > SectionSpec{}.RowsPerPart()) return MalformedPayload("stats", "too many rows");
  ByteReader reader(payload);
  std::array<std::vector<int64_t>, kStatsColumns> columns;
  for (std::vector<int64_t>& column : columns) {
    SH_RETURN_IF_ERROR(DecodeColumn(&reader, row_count, &column));
  }
  if (!reader.AtEnd()) return MalformedPayload("stats", "bytes are left over");
  constexpr auto kMost = static_cast<int64_t>(kStatsMagnitudeMax * kStatsScale);
  for (const int column : {0, 1, 3, 4}) {
    const auto [least, most] = std::minmax_element(columns[column].begin(), columns[column].end());
    if (row_count > 0 && (*least < -kMost || *most > kMost)) {
      return MalformedPayload("stats", "a value beyond the largest magnitude");
    }
  }
  for (const int64_t id : columns[2]) {
    if (id < 0 || id >= kVocabularyMax) return MalformedPayload("stats", absl::StrCat("id ", id));
  }
  for (uint32_t row = 0; row < row_count; ++row) {
    rows->entropy.push_back(FromFixed(columns[0][row]));
    rows->logsumexp.push_back(FromFixed(columns[1][row]));
    rows->top1_id.push_back(static_cast<int32_t>(columns[2][row]));
    rows->top1_logprob.push_back(FromFixed(columns[3][row]));
    rows->next_logprob.push_back(FromFixed(columns[4][row]));
  }
  return absl::OkStatus();
}

}  // namespace stillhouse

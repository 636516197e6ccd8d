#include "bench/teacher_rows.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>

#include "common/byte_io.h"
#include "common/file.h"
#include "common/random.h"
#include "common/status.h"

namespace stillhouse {
namespace {

constexpr char kMagic[] = "SHBR";

template <typename T>
void PutVector(const std::vector<T>& values, ByteWriter* out) {
  out->PutField(
      absl::string_view(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)));
}

template <typename T>
void GetVector(ByteReader* reader, std::vector<T>* values) {
  absl::string_view bytes;
  if (!reader->GetField(&bytes)) return;
  values->resize(bytes.size() / sizeof(T));
  std::memcpy(values->data(), bytes.data(), values->size() * sizeof(T));
}

// Calls `field` with every vector of a document.
template <typename Document, typename Field>
void ForFields(Document& document, Field field) {
  field(document.stats.entropy);
  field(document.stats.logsumexp);
  field(document.stats.top1_id);
  field(document.stats.top1_logprob);
  field(document.stats.next_logprob);
  field(document.sampled.offsets);
  field(document.sampled.ids);
  field(document.sampled.counts);
  field(document.top_ids);
  field(document.top_logprobs);
  field(document.rest_logprobs);
}

constexpr uint32_t kVocabulary = 49152;
constexpr uint32_t kOwnRanks = 400;  // ids that a document has for itself, before the common ones

// A made-up document: p(rank) ~ (rank + 1)^-s.
class SyntheticDocument {
 public:
  explicit SyntheticDocument(uint64_t number) : random_(/*seed=*/7, number), number_(number) {}

  void AddRow(DocumentRows* rows) {
    const double exponent = 1.1 + 0.9 * random_.NextUniform();
    std::vector<double> below(kVocabulary + 1, 0.0);
    for (uint32_t rank = 0; rank < kVocabulary; ++rank) {
      below[rank + 1] = below[rank] + std::pow(rank + 1.0, -exponent);
    }
    const double sum = below.back();
    const auto logprob = [&](uint32_t rank) {
      return static_cast<float>(std::log((below[rank + 1] - below[rank]) / sum));
    };
    const uint64_t row_shift = random_.NextBelow(kOwnRanks);
    const auto id = [&](uint32_t rank) {
      const uint64_t moved =
          rank < kOwnRanks ? (rank + row_shift) % kOwnRanks + number_ * 977 : rank;
      return static_cast<int32_t>(moved * 7919 % kVocabulary);
    };
    std::map<int32_t, uint16_t> draws;
    for (uint32_t i = 0; i < kBenchDraws; ++i) {
      const auto at = std::upper_bound(below.begin(), below.end(), random_.NextUniform() * sum);
      const auto rank = static_cast<uint32_t>(at - below.begin()) - 1;
      ++draws[id(std::min(rank, kVocabulary - 1))];
    }
    for (const auto& [drawn, count] : draws) {
      rows->sampled.ids.push_back(drawn);
      rows->sampled.counts.push_back(count);
    }
    rows->sampled.offsets.push_back(static_cast<uint32_t>(rows->sampled.ids.size()));
    std::map<int32_t, float> top;
    for (uint32_t rank = 0; top.size() < kBenchTop; ++rank) top.emplace(id(rank), logprob(rank));
    for (const auto& [listed, value] : top) {
      rows->top_ids.push_back(listed);
      rows->top_logprobs.push_back(value);
    }
    rows->rest_logprobs.push_back(static_cast<float>(std::log((sum - below[kBenchTop]) / sum)));
    double entropy = 0;
    for (uint32_t rank = 0; rank < kVocabulary; ++rank)
      entropy -= std::exp(logprob(rank)) * logprob(rank);
    rows->stats.entropy.push_back(static_cast<float>(entropy));
    rows->stats.logsumexp.push_back(static_cast<float>(18 + 3 * random_.NextNormal()));
    rows->stats.top1_id.push_back(id(0));
    rows->stats.top1_logprob.push_back(logprob(0));
    rows->stats.next_logprob.push_back(logprob(static_cast<uint32_t>(random_.NextBelow(64))));
  }

 private:
  RandomStream random_;
  const uint64_t number_;
};

}  // namespace

uint64_t TeacherRows::rows() const {
  uint64_t sum = 0;
  for (const DocumentRows& document : documents) sum += document.rows();
  return sum;
}

absl::Status WriteTeacherRows(const std::string& path, const TeacherRows& rows) {
  ByteWriter out;
  out.PutRaw(kMagic);
  out.PutField(rows.source);
  out.Put(rows.vocabulary);
  out.PutVarint(rows.documents.size());
  for (const DocumentRows& document : rows.documents) {
    ForFields(document, [&](const auto& values) { PutVector(values, &out); });
  }
  return WriteFileAtomically(path, out.bytes());
}

absl::StatusOr<TeacherRows> ReadTeacherRows(const std::string& path) {
  SH_ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path));
  ByteReader reader(bytes);
  TeacherRows rows;
  absl::string_view magic, source;
  uint64_t documents = 0;
  reader.GetRaw(4, &magic);
  reader.GetField(&source);
  reader.Get(&rows.vocabulary);
  reader.GetVarint(&documents);
  rows.source = std::string(source);
  for (uint64_t d = 0; d < documents && reader.ok(); ++d) {
    DocumentRows& document = rows.documents.emplace_back();
    document.sampled.draws = kBenchDraws;
    ForFields(document, [&](auto& values) { GetVector(&reader, &values); });
  }
  if (magic != kMagic || !reader.AtEnd()) {
    return absl::DataLossError(absl::StrCat(path, " holds no rows of a teacher; remove it"));
  }
  return rows;
}

TeacherRows SyntheticTeacherRows(uint32_t documents, uint32_t rows) {
  TeacherRows teacher{.source = "synthetic", .vocabulary = kVocabulary, .documents = {}};
  for (uint32_t d = 0; d < documents; ++d) {
    DocumentRows& document = teacher.documents.emplace_back();
    document.sampled.draws = kBenchDraws;
    SyntheticDocument made(d);
    for (uint32_t row = 0; row < rows; ++row) made.AddRow(&document);
  }
  return teacher;
}

const TeacherRows& BenchRows() {
  static const TeacherRows* const rows = [] {
    const char* path = std::getenv("STILLHOUSE_BENCH_ROWS");
    if (path == nullptr) {
      return new TeacherRows(SyntheticTeacherRows(/*documents=*/4, /*rows=*/255));
    }
    absl::StatusOr<TeacherRows> read = ReadTeacherRows(path);
    SH_CHECK_OK(read);
    return new TeacherRows(*std::move(read));
  }();
  return *rows;
}

}  // namespace stillhouse

#include "storage/service/plain_logits.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "common/file.h"
#include "common/status.h"
#include "dataset/plan_format.h"
#include "dataset/plan_writer.h"
#include "storage/codec/top_tokens.h"
#include "storage/export_manifest.h"
#include "storage/service/cache_client.h"
#include "storage/service/export_folder.h"

namespace stillhouse {
namespace {

using Json = nlohmann::json;

constexpr char kDescription[] = "PLAIN.json";
constexpr uint64_t kDescriptionBytesMax = 1 << 16;
constexpr size_t kTextBytesMax = 1024;
constexpr uint32_t kDocumentTokensMax = 1u << 20;
constexpr uint64_t kTokensMax = uint64_t{1} << 36;
constexpr double kSumMax = 1.001;  // of the probabilities of a row, to allow for rounding

struct Description {
  std::string name, label, revision;
  uint32_t k = 0;
};

absl::StatusOr<Description> ReadDescription(const ExportFolderReader& folder) {
  SH_ASSIGN_OR_RETURN(const auto file, folder.OpenFile(kDescription));
  const auto malformed = [&file](absl::string_view what) {
    return absl::DataLossError(absl::StrCat(file->path(), ": ", what));
  };
  if (file->bytes() > kDescriptionBytesMax) return malformed("it is larger than 64 KiB");
  SH_ASSIGN_OR_RETURN(const auto bytes, file->ReadAll());
  const Json json = Json::parse(*bytes, /*cb=*/nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return malformed("it is no JSON object");
  const auto is = [&json](const char* key, const Json& value) {
    const auto it = json.find(key);
    return it != json.end() && *it == value;
  };
  if (!is("format", "stillhouse plain logits") || !is("version", 1)) {
    return malformed("it does not describe plain logits of version 1");
  }
  Description description;
  const std::pair<const char*, std::string*> texts[] = {{"name", &description.name},
                                                        {"label", &description.label},
                                                        {"revision", &description.revision}};
  for (const auto& [key, text] : texts) {
    const auto it = json.find(key);
    if (it == json.end() || !it->is_string()) return malformed(absl::StrCat(key, " is missing"));
    *text = it->get<std::string>();
    if (text->empty() || text->size() > kTextBytesMax) {
      return malformed(absl::StrCat(key, " is empty or longer than ", kTextBytesMax, " bytes"));
    }
  }
  if (!IsJobName(description.name)) return malformed("name: a-z, 0-9, _ and -, at most 64 long");
  const auto k = json.find("k");
  if (k == json.end() || !k->is_number_unsigned() || k->get<uint64_t>() < 1 ||
      k->get<uint64_t>() > kTopMax) {
    return malformed(absl::StrCat("k is no number from 1 to ", kTopMax));
  }
  description.k = static_cast<uint32_t>(k->get<uint64_t>());
  return description;
}

class PlainLogitsImpl final : public PlainLogits {
 public:
  PlainLogitsImpl(std::unique_ptr<ExportFolderReader> folder, const PlainTokenizer& tokenizer)
      : folder_(std::move(folder)), tokenizer_(tokenizer) {}

  absl::Status Open() {
    SH_ASSIGN_OR_RETURN(const Description description, ReadDescription(*folder_));
    spec_ = {.kind = SectionKind::kLogitsTopK, .k = description.k};
    job_.name = description.name;
    job_.teacher = Sha256()
                       .AddField("stillhouse foreign teacher 1")
                       .AddField(description.label)
                       .AddField(description.revision)
                       .AddDigest(tokenizer_.fingerprint)
                       .Finish();
    job_.sections = {spec_};
    SH_RETURN_IF_ERROR(OpenArrays());
    SH_RETURN_IF_ERROR(BuildPlan());
    job_.plan = plan_->digest();
    return PlaceSections();
  }

  const std::string& job() const override { return job_.name; }
  const Digest& teacher() const override { return job_.teacher; }

  absl::StatusOr<std::vector<ObjectInfo>> List(absl::string_view, absl::string_view, int) override {
    return std::vector<ObjectInfo>();
  }
  absl::StatusOr<std::shared_ptr<const std::string>> GetObject(const std::string& name) override {
    if (name == JobObjectName(job_.name)) {
      return std::make_shared<const std::string>(EncodeJobObject(job_));
    }
    if (name == PlanObjectName(job_.plan)) return plan_bytes_;
    return absl::NotFoundError(absl::StrCat("no object ", name));
  }
  absl::StatusOr<JobUsage> UsageOfJob(const std::string&) override { return JobUsage(); }
  absl::StatusOr<std::vector<std::optional<Part>>> GetParts(
      const std::vector<PartKey>& keys) override {
    std::vector<std::optional<Part>> parts;
    for (const PartKey& key : keys) {
      const auto place = places_.find(key.section);
      if (place == places_.end()) {
        parts.emplace_back();
        continue;
      }
      SH_ASSIGN_OR_RETURN(parts.emplace_back(), Encode(key, place->second));
    }
    return parts;
  }

 private:
  struct Place {
    uint64_t row = 0;  // the first, among all rows
    uint32_t rows = 0;
  };

  absl::StatusOr<std::unique_ptr<ExportInputFile>> OpenArray(const char* name, uint64_t bytes) {
    SH_ASSIGN_OR_RETURN(auto file, folder_->OpenFile(name));
    if (file->bytes() != bytes) {
      return absl::DataLossError(
          absl::StrCat(file->path(), ": it has ", file->bytes(), " bytes and should have ", bytes));
    }
    return file;
  }

  absl::Status OpenArrays() {
    SH_ASSIGN_OR_RETURN(const auto file, folder_->OpenFile("lengths.bin"));
    if (file->bytes() % sizeof(uint32_t) != 0 || file->bytes() == 0 ||
        file->bytes() / sizeof(uint32_t) >= std::numeric_limits<uint32_t>::max()) {
      return absl::DataLossError(absl::StrCat(file->path(), ": no array of lengths"));
    }
    lengths_.resize(file->bytes() / sizeof(uint32_t));
    SH_RETURN_IF_ERROR(file->ReadAt(0, file->bytes(), reinterpret_cast<char*>(lengths_.data())));
    uint64_t tokens = 0;
    for (const uint32_t length : lengths_) {
      if (length < 2 || length > kDocumentTokensMax || (tokens += length) > kTokensMax) {
        return absl::DataLossError(
            absl::StrCat(file->path(), ": a document of ", length, " tokens, or too many tokens"));
      }
    }
    const uint64_t values = (tokens - lengths_.size()) * spec_.k;
    SH_ASSIGN_OR_RETURN(tokens_, OpenArray("tokens.bin", tokens * sizeof(int32_t)));
    SH_ASSIGN_OR_RETURN(ids_, OpenArray("ids.bin", values * sizeof(int32_t)));
    SH_ASSIGN_OR_RETURN(logprobs_, OpenArray("logprobs.bin", values * sizeof(float)));
    return absl::OkStatus();
  }

  absl::Status BuildPlan() {
    SH_ASSIGN_OR_RETURN(const TempFolder folder, TempFolder::Create());
    SH_ASSIGN_OR_RETURN(
        const auto writer,
        PlanWriter::Create({.folder = folder.path(),
                            .tokenizer = tokenizer_.fingerprint,
                            .vocabulary = tokenizer_.vocabulary,
                            .max_tokens = *std::max_element(lengths_.begin(), lengths_.end()),
                            .domains = {"imported"}}));
    std::vector<int32_t> tokens;
    std::vector<uint8_t> mask;
    uint64_t at = 0;
    for (size_t d = 0; d < lengths_.size(); ++d) {
      tokens.resize(lengths_[d]);
      mask.assign(lengths_[d], 1);
      SH_RETURN_IF_ERROR(ReadArray(*tokens_, at, &tokens));
      at += lengths_[d];
      for (const int32_t id : tokens) {
        if (id >= 0 && static_cast<uint32_t>(id) < tokenizer_.vocabulary) continue;
        return absl::DataLossError(absl::StrCat(tokens_->path(), ": document ", d, " has the id ",
                                                id, "; the tokenizer has ", tokenizer_.vocabulary));
      }
      SH_RETURN_IF_ERROR(writer->Add(tokens, mask, /*domain=*/0, static_cast<uint32_t>(d)));
    }
    SH_ASSIGN_OR_RETURN(const auto written,
                        writer->Finish(std::vector<bool>(lengths_.size(), false)));
    SH_ASSIGN_OR_RETURN(std::string bytes, ReadFile(written.path, kExportObjectBytesMax));
    plan_bytes_ = std::make_shared<const std::string>(std::move(bytes));
    SH_ASSIGN_OR_RETURN(plan_, ParsePlan(plan_bytes_));
    return absl::OkStatus();
  }

  // The plan deals documents anew: where do the rows of each lie? Of documents with the same
  // tokens, the first counts.
  absl::Status PlaceSections() {
    std::vector<int32_t> tokens;
    uint64_t at = 0, row = 0;
    for (const uint32_t length : lengths_) {
      tokens.resize(length);
      SH_RETURN_IF_ERROR(ReadArray(*tokens_, at, &tokens));
      const Digest document = DocumentKey(tokenizer_.fingerprint, tokens.data(), tokens.size());
      places_.try_emplace(SectionKey(job_.teacher, document, spec_), Place{row, length - 1});
      at += length;
      row += length - 1;
    }
    return absl::OkStatus();
  }

  template <typename T>
  absl::Status ReadArray(const ExportInputFile& file, uint64_t first, std::vector<T>* values) {
    return file.ReadAt(first * sizeof(T), values->size() * sizeof(T),
                       reinterpret_cast<char*>(values->data()));
  }

  absl::StatusOr<Part> Encode(const PartKey& key, const Place& place) {
    if (key.row_begin >= place.rows) return absl::NotFoundError("no such part");
    const uint32_t rows = std::min(spec_.RowsPerPart(), place.rows - key.row_begin);
    const uint64_t first = place.row + key.row_begin;
    std::vector<int32_t> ids(size_t{rows} * spec_.k);
    std::vector<float> logprobs(ids.size());
    SH_RETURN_IF_ERROR(ReadArray(*ids_, first * spec_.k, &ids));
    SH_RETURN_IF_ERROR(ReadArray(*logprobs_, first * spec_.k, &logprobs));
    TopTokenRows top;
    for (uint32_t row = 0; row < rows; ++row) {
      const size_t begin = size_t{row} * spec_.k;
      SH_RETURN_IF_ERROR_AT(AppendRow(absl::MakeSpan(ids).subspan(begin, spec_.k),
                                      absl::MakeSpan(logprobs).subspan(begin, spec_.k), &top),
                            absl::StrCat(ids_->path(), ": row ", first + row));
    }
    return Part{key, rows, EncodeTopTokens(top, 0, rows)};
  }

  // An id of -1 stands for none.
  absl::Status AppendRow(absl::Span<const int32_t> ids, absl::Span<const float> logprobs,
                         TopTokenRows* top) {
    row_.clear();
    double sum = 0;
    for (size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] == -1) continue;
      if (ids[i] < 0 || static_cast<uint32_t>(ids[i]) >= tokenizer_.vocabulary) {
        return absl::DataLossError(
            absl::StrCat("id ", ids[i], "; the tokenizer has ", tokenizer_.vocabulary));
      }
      if (!(logprobs[i] <= 0) || !std::isfinite(logprobs[i])) {
        return absl::DataLossError(absl::StrCat("a log-probability of ", logprobs[i]));
      }
      row_.emplace_back(ids[i], logprobs[i]);
      sum += std::exp(static_cast<double>(logprobs[i]));
    }
    std::sort(row_.begin(), row_.end());
    const auto same = [](const auto& a, const auto& b) { return a.first == b.first; };
    if (row_.empty() || std::adjacent_find(row_.begin(), row_.end(), same) != row_.end()) {
      return absl::DataLossError("no id, or one twice");
    }
    if (sum > kSumMax) {
      return absl::DataLossError(absl::StrCat("its probabilities sum to ", sum));
    }
    for (const auto& [id, logprob] : row_) {
      top->ids.push_back(id);
      top->levels.push_back(LevelOf(logprob));
    }
    top->offsets.push_back(static_cast<uint32_t>(top->ids.size()));
    top->residual_levels.push_back(LevelOf(std::log(std::max(0.0, 1 - sum))));
    return absl::OkStatus();
  }

  const std::unique_ptr<ExportFolderReader> folder_;
  const PlainTokenizer tokenizer_;
  // Constant after Open.
  SectionSpec spec_;
  JobObject job_;
  std::vector<uint32_t> lengths_;  // of the documents as given, in tokens
  std::unique_ptr<ExportInputFile> tokens_, ids_, logprobs_;
  std::shared_ptr<const std::string> plan_bytes_;
  std::shared_ptr<const Plan> plan_;
  absl::flat_hash_map<Digest, Place> places_;

  std::vector<std::pair<int32_t, float>> row_;  // of AppendRow, kept for its memory
};

}  // namespace

absl::StatusOr<std::unique_ptr<PlainLogits>> OpenPlainLogits(const std::string& folder,
                                                             const PlainTokenizer& tokenizer) {
  SH_ASSIGN_OR_RETURN(auto reader, ExportFolderReader::Open(folder));
  auto logits = std::make_unique<PlainLogitsImpl>(std::move(reader), tokenizer);
  SH_RETURN_IF_ERROR(logits->Open());
  return logits;
}

}  // namespace stillhouse

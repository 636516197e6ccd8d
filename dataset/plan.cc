#include "dataset/plan.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "common/file.h"
#include "common/status.h"
#include "dataset/plan_format.h"
#include "formats/utf8.h"

namespace stillhouse {
namespace {

static_assert(sizeof(PlanBatch) == 12 && alignof(PlanBatch) == 4,
              "batches are read where they lie");

absl::Status Bad(const absl::AlphaNum& a, const absl::AlphaNum& b = "",
                 const absl::AlphaNum& c = "") {
  return absl::DataLossError(absl::StrCat("plan: ", a, b, c));
}

// A plan over bytes that something else keeps alive.
class MappedPlan final : public Plan {
 public:
  // `keep` owns `bytes`, which begin at a multiple of 8.
  MappedPlan(std::shared_ptr<const void> keep, absl::string_view bytes)
      : keep_(std::move(keep)), bytes_(bytes) {}

  absl::Status Check();

  const Digest& digest() const override { return digest_; }
  const Digest& tokenizer_fingerprint() const override { return header_.tokenizer; }
  uint32_t vocabulary() const override { return header_.vocabulary; }
  uint32_t max_tokens() const override { return header_.max_tokens; }
  uint32_t shuffle_window() const override { return header_.shuffle_window; }
  const std::vector<std::string>& domains() const override { return domains_; }
  uint32_t document_count() const override { return header_.documents; }
  uint32_t chunk_count() const override { return header_.chunks; }
  uint32_t training_chunk_count() const override { return header_.training_chunks; }
  uint64_t training_rows() const override { return RowsOf(0, header_.training_chunks); }
  uint64_t held_out_rows() const override {
    return RowsOf(header_.training_chunks, header_.chunks);
  }
  PlanDocument document(uint32_t index) const override;
  PlanChunk chunk(uint32_t index) const override;

 private:
  absl::Status CheckHeader();
  absl::Status CheckDocuments() const;
  absl::Status CheckChunks() const;
  absl::Status CheckBatches(uint32_t chunk) const;
  absl::Status CheckDomains();

  template <typename T>
  const T* At(uint64_t offset) const {
    return reinterpret_cast<const T*>(bytes_.data() + offset);
  }
  uint64_t RowsOf(uint32_t chunk_begin, uint32_t chunk_end) const {
    const uint32_t begin = chunk_begins_[chunk_begin], end = chunk_begins_[chunk_end];
    return token_offsets_[end] - token_offsets_[begin] - (end - begin);
  }

  // Constant once checked.
  std::shared_ptr<const void> keep_;
  absl::string_view bytes_;
  PlanHeader header_;
  PlanLayout layout_;
  Digest digest_;
  std::vector<std::string> domains_;
  const uint64_t* token_offsets_ = nullptr;
  const uint32_t* document_domains_ = nullptr;
  const uint32_t* chunk_begins_ = nullptr;
  const uint32_t* chunk_batches_ = nullptr;
  const PlanBatch* batches_ = nullptr;
};

absl::Status MappedPlan::CheckHeader() {
  SH_ASSIGN_OR_RETURN(header_, DecodePlanHeader(bytes_));
  if (header_.tokens > bytes_.size()) return Bad("cut short: ", bytes_.size(), " bytes");
  layout_ = LayOutPlan(header_);
  if (header_.file_bytes != layout_.file_bytes) return Bad("header counts do not fit its own size");
  if (bytes_.size() != layout_.file_bytes) {
    return Bad("cut short or too long: ", bytes_.size(),
               absl::StrCat(" bytes where the header says ", layout_.file_bytes));
  }
  if (Xxh3(bytes_.substr(0, layout_.checksum)) != *At<uint64_t>(layout_.checksum)) {
    return Bad("checksum mismatch");
  }
  if (header_.documents == 0 || header_.chunks == 0) return Bad("has no documents");
  if (header_.training_chunks == 0) return Bad("has no training chunks");
  if (header_.training_chunks > header_.chunks) return Bad("more training chunks than chunks");
  if (header_.max_tokens < 2) return Bad("max_tokens below 2");
  if (header_.shuffle_window == 0) return Bad("shuffle window of 0 chunks");
  if (header_.vocabulary == 0 || header_.vocabulary > INT32_MAX) return Bad("absurd vocabulary");
  token_offsets_ = At<uint64_t>(layout_.token_offsets);
  document_domains_ = At<uint32_t>(layout_.document_domains);
  chunk_begins_ = At<uint32_t>(layout_.chunk_begins);
  chunk_batches_ = At<uint32_t>(layout_.chunk_batches);
  batches_ = At<PlanBatch>(layout_.batches);
  return absl::OkStatus();
}

absl::Status MappedPlan::CheckDocuments() const {
  if (token_offsets_[0] != 0 || token_offsets_[header_.documents] != header_.tokens) {
    return Bad("document lengths do not add up");
  }
  for (uint32_t i = 0; i < header_.documents; ++i) {
    const uint64_t begin = token_offsets_[i], end = token_offsets_[i + 1];
    if (end < begin || end - begin < 2 || end - begin > header_.max_tokens ||
        end > header_.tokens) {
      return Bad("document ", i, " has an impossible length");
    }
    if (document_domains_[i] >= header_.domains) return Bad("document ", i, " has no such domain");
  }
  const auto* ids = At<int32_t>(layout_.tokens);
  const auto* mask = At<uint8_t>(layout_.loss_mask);
  for (uint64_t i = 0; i < header_.tokens; ++i) {
    if (ids[i] < 0 || static_cast<uint32_t>(ids[i]) >= header_.vocabulary) {
      return Bad("token ", i, absl::StrCat(" is ", ids[i], ", not below ", header_.vocabulary));
    }
    if (mask[i] > 1) return Bad("loss mask of token ", i, " is neither 0 nor 1");
  }
  const auto* keys = At<Digest>(layout_.keys);
  for (uint32_t i = 0; i < header_.documents; ++i) {
    const uint64_t begin = token_offsets_[i];
    if (DocumentKey(header_.tokenizer, ids + begin, token_offsets_[i + 1] - begin) != keys[i]) {
      return Bad("document ", i, " does not have the key that stands for it");
    }
  }
  return absl::OkStatus();
}

absl::Status MappedPlan::CheckBatches(uint32_t chunk) const {
  uint32_t document = chunk_begins_[chunk];
  for (uint32_t b = chunk_batches_[chunk]; b < chunk_batches_[chunk + 1]; ++b) {
    const PlanBatch& batch = batches_[b];
    if (batch.begin != document || batch.end <= batch.begin ||
        batch.end > chunk_begins_[chunk + 1]) {
      return Bad("batch ", b, " does not follow the one before it");
    }
    uint64_t longest = 0;
    for (; document < batch.end; ++document) {
      longest = std::max(longest, token_offsets_[document + 1] - token_offsets_[document]);
    }
    if (batch.length < longest || batch.length > header_.max_tokens) {
      return Bad("batch ", b, absl::StrCat(" has length ", batch.length));
    }
  }
  if (document != chunk_begins_[chunk + 1]) return Bad("batches do not cover chunk ", chunk);
  return absl::OkStatus();
}

absl::Status MappedPlan::CheckChunks() const {
  if (chunk_begins_[0] != 0 || chunk_begins_[header_.chunks] != header_.documents) {
    return Bad("chunks do not cover the documents");
  }
  if (chunk_batches_[0] != 0 || chunk_batches_[header_.chunks] != header_.batches) {
    return Bad("chunks do not cover the batches");
  }
  for (uint32_t i = 0; i < header_.chunks; ++i) {
    if (chunk_begins_[i] >= chunk_begins_[i + 1] || chunk_begins_[i + 1] > header_.documents) {
      return Bad("chunk ", i, " has an impossible range of documents");
    }
    if (chunk_batches_[i] >= chunk_batches_[i + 1] || chunk_batches_[i + 1] > header_.batches) {
      return Bad("chunk ", i, " has an impossible range of batches");
    }
    SH_RETURN_IF_ERROR(CheckBatches(i));
  }
  return absl::OkStatus();
}

absl::Status MappedPlan::CheckDomains() {
  if (header_.domains == 0 || header_.domains > kPlanDomainsMax)
    return Bad("absurd number of domains");
  const auto* ends = At<uint32_t>(layout_.domain_ends);
  uint32_t begin = 0;
  for (uint32_t i = 0; i < header_.domains; ++i) {
    if (ends[i] < begin || ends[i] > header_.domain_bytes ||
        ends[i] - begin > kPlanDomainNameBytesMax) {
      return Bad("domain ", i, " has an impossible name");
    }
    const absl::string_view name = bytes_.substr(layout_.domain_names + begin, ends[i] - begin);
    if (FindInvalidUtf8(name) != absl::string_view::npos) return Bad("domain ", i, " is not UTF-8");
    domains_.emplace_back(name);
    begin = ends[i];
  }
  if (begin != header_.domain_bytes) return Bad("domain names do not add up");
  return absl::OkStatus();
}

absl::Status MappedPlan::Check() {
  SH_RETURN_IF_ERROR(CheckHeader());
  SH_RETURN_IF_ERROR(CheckDomains());
  SH_RETURN_IF_ERROR(CheckDocuments());
  SH_RETURN_IF_ERROR(CheckChunks());
  digest_ = Sha256Of(bytes_);
  return absl::OkStatus();
}

PlanDocument MappedPlan::document(uint32_t index) const {
  SH_CHECK(index < header_.documents);
  const uint64_t begin = token_offsets_[index];
  const size_t count = token_offsets_[index + 1] - begin;
  PlanDocument document;
  document.key = At<Digest>(layout_.keys)[index];
  document.tokens = {At<int32_t>(layout_.tokens) + begin, count};
  document.loss_mask = {At<uint8_t>(layout_.loss_mask) + begin, count};
  document.domain = document_domains_[index];
  const uint32_t* after =
      std::upper_bound(chunk_begins_, chunk_begins_ + header_.chunks + 1, index);
  document.chunk = static_cast<uint32_t>(after - chunk_begins_) - 1;
  return document;
}

PlanChunk MappedPlan::chunk(uint32_t index) const {
  SH_CHECK(index < header_.chunks);
  return PlanChunk{.begin = chunk_begins_[index],
                   .end = chunk_begins_[index + 1],
                   .rows = RowsOf(index, index + 1),
                   .held_out = index >= header_.training_chunks,
                   .batches = {batches_ + chunk_batches_[index],
                               chunk_batches_[index + 1] - chunk_batches_[index]}};
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Plan>> ParsePlan(std::shared_ptr<const std::string> bytes) {
  SH_CHECK(bytes != nullptr);
  absl::string_view view = *bytes;
  std::shared_ptr<const void> keep = bytes;
  if (reinterpret_cast<uintptr_t>(view.data()) % 8 != 0) {  // only a short string, which is no plan
    auto aligned = std::make_shared<std::vector<uint64_t>>(view.size() / 8 + 1);
    std::memcpy(aligned->data(), view.data(), view.size());
    view = {reinterpret_cast<const char*>(aligned->data()), view.size()};
    keep = aligned;
  }
  auto plan = std::make_shared<MappedPlan>(std::move(keep), view);
  SH_RETURN_IF_ERROR(plan->Check());
  return plan;
}

absl::StatusOr<std::shared_ptr<const Plan>> OpenPlan(const std::string& path) {
  SH_ASSIGN_OR_RETURN(std::shared_ptr<const MappedFile> file, MappedFile::Open(path));
  const absl::string_view bytes = file->bytes();
  auto plan = std::make_shared<MappedPlan>(std::move(file), bytes);
  SH_RETURN_IF_ERROR_AT(plan->Check(), path);
  return plan;
}

}  // namespace stillhouse

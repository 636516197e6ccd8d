#include "dataset/build_plan.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/file.h"
#include "common/status.h"
#include "dataset/arrange.h"
#include "dataset/plan_format.h"
#include "dataset/plan_writer.h"
#include "dataset/split.h"

namespace stillhouse {
namespace {

constexpr uint64_t kPlannerVersion = 1;  // goes up when the same inputs would give another plan

absl::Status CheckRecipe(const DatasetRecipe& recipe) {
  if (recipe.max_tokens < 2 || recipe.max_tokens > 1'000'000) {
    return absl::InvalidArgumentError(
        absl::StrCat("dataset.max_tokens: ", recipe.max_tokens, " is not between 2 and 1,000,000"));
  }
  if (recipe.chunk_tokens < recipe.max_tokens || recipe.chunk_tokens > 1 << 30) {
    return absl::InvalidArgumentError(absl::StrCat("dataset.chunk_tokens: ", recipe.chunk_tokens,
                                                   " is not between max_tokens and 2^30"));
  }
  if (recipe.shuffle_window < 1 || recipe.shuffle_window > 1'000'000) {
    return absl::InvalidArgumentError(absl::StrCat(
        "dataset.shuffle_window: ", recipe.shuffle_window, " is not between 1 and 1,000,000"));
  }
  if (!(recipe.held_out >= 0 && recipe.held_out < 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("dataset.held_out: ", recipe.held_out, " is not at least 0 and below 1"));
  }
  return absl::OkStatus();
}

// The domains of the files, in order of first appearance.
absl::StatusOr<std::vector<std::string>> Domains(const std::vector<SourceFile>& files) {
  std::vector<std::string> domains;
  for (const SourceFile& file : files) {
    if (std::find(domains.begin(), domains.end(), file.domain) != domains.end()) continue;
    if (file.domain.size() > kPlanDomainNameBytesMax || domains.size() == kPlanDomainsMax) {
      return absl::InvalidArgumentError(absl::StrCat("dataset.sources: at most ", kPlanDomainsMax,
                                                     " domains, with names of at most ",
                                                     kPlanDomainNameBytesMax, " bytes"));
    }
    domains.push_back(file.domain);
  }
  return domains;
}

class Builder {
 public:
  Builder(const DatasetRecipe& recipe, const Tokenizer& tokenizer, const BuildPlanOptions& options,
          PlanWriter& writer)
      : recipe_(recipe), tokenizer_(tokenizer), options_(options), writer_(writer) {
    rule_.max_tokens = recipe.max_tokens;
    rule_.when_longer = recipe.when_longer;
  }

  absl::Status ReadAll(const std::vector<SourceFile>& files,
                       const std::vector<std::string>& domains) {
    for (const SourceFile& file : files) progress_.bytes += file.bytes;
    uint64_t before = 0;
    for (const SourceFile& file : files) {
      domain_ = std::find(domains.begin(), domains.end(), file.domain) - domains.begin();
      SH_RETURN_IF_ERROR(ReadSources(file, tokenizer_.size(), [&](Source source, uint64_t bytes) {
        SH_RETURN_IF_ERROR(AddSource(source));
        progress_.bytes_done = before + bytes;
        if (options_.progress) options_.progress(progress_);
        return absl::OkStatus();
      }));
      before += file.bytes;
    }
    return absl::OkStatus();
  }

  absl::StatusOr<BuiltPlan> Finish();

 private:
  absl::Status AddSource(const Source& source);
  void AddNotes(BuiltPlan* plan) const;

  const DatasetRecipe& recipe_;
  const Tokenizer& tokenizer_;
  const BuildPlanOptions& options_;
  PlanWriter& writer_;
  SplitRule rule_;
  SplitDrops drops_;
  PlanProgress progress_;
  uint32_t domain_ = 0;                 // of the file being read
  std::vector<Digest> content_hashes_;  // of the sources that gave a document
  uint64_t empty_sources_ = 0;
};

absl::Status Builder::AddSource(const Source& source) {
  std::vector<int32_t> tokens = source.ids;
  std::vector<uint8_t> mask = source.loss_mask;
  rule_.prefix.reset();
  if (!source.is_ids) {
    SH_ASSIGN_OR_RETURN_AT(tokens, tokenizer_.Encode(source.text), source.where);
    if (!tokens.empty() && tokenizer_.eos_id().has_value()) tokens.push_back(*tokenizer_.eos_id());
    if (tokenizer_.adds_bos()) rule_.prefix = tokenizer_.bos_id();
    mask.assign(tokens.size(), 1);
  }
  if (tokens.empty()) {
    ++empty_sources_;
    return absl::OkStatus();
  }
  if (content_hashes_.size() == UINT32_MAX) {
    return absl::InvalidArgumentError("dataset: more than 4,294,967,295 sources");
  }
  const auto index = static_cast<uint32_t>(content_hashes_.size());
  const uint64_t documents_before = progress_.documents;
  SH_RETURN_IF_ERROR(
      SplitSource(tokens, mask, rule_, source.where, &drops_, [&](const Piece& piece) {
        ++progress_.documents;
        progress_.tokens += piece.tokens.size();
        return writer_.Add(piece.tokens, piece.loss_mask, domain_, index);
      }));
  if (progress_.documents > documents_before) content_hashes_.push_back(source.ContentHash());
  return absl::OkStatus();
}

void Builder::AddNotes(BuiltPlan* plan) const {
  const auto note = [plan](uint64_t count, absl::string_view what) {
    if (count > 0) plan->notes.push_back(absl::StrCat(count, what));
  };
  note(empty_sources_, " source(s) are empty and were left out.");
  note(drops_.short_sources, " source(s) have too few tokens for one row and were left out.");
  note(drops_.unlabelled_pieces, " piece(s) have no label with loss_mask 1 and were left out.");
  note(drops_.tokens_cut, " last token(s) fit in no document of 2 tokens and were left out.");
  if (recipe_.held_out > 0 && plan->held_out_sources == 0) {
    plan->notes.push_back(
        "Nothing is held out: that needs at least two different sources. Students will not be "
        "evaluated.");
  }
}

absl::StatusOr<BuiltPlan> Builder::Finish() {
  if (progress_.documents == 0) {
    std::vector<std::string> globs;
    for (const SourceRecipe& source : recipe_.sources) globs.push_back(source.path);
    return absl::InvalidArgumentError(
        absl::StrCat("dataset: nothing to train on: no document of at least 2 tokens in ",
                     absl::StrJoin(globs, ", ")));
  }
  const std::vector<bool> held_out = ChooseHeldOut(content_hashes_, recipe_.held_out);
  SH_ASSIGN_OR_RETURN(const PlanWriter::Written written, writer_.Finish(held_out));
  BuiltPlan plan;
  plan.path = written.path;
  plan.digest = written.digest;
  plan.sources = content_hashes_.size();
  plan.held_out_sources = std::count(held_out.begin(), held_out.end(), true);
  plan.documents = progress_.documents;
  plan.tokens = progress_.tokens;
  AddNotes(&plan);
  if (written.held_out_repeats > 0) {
    plan.notes.push_back(
        absl::StrCat(written.held_out_repeats,
                     " held-out document(s) stand word for word in the training text too."));
  }
  return plan;
}

}  // namespace

absl::StatusOr<BuiltPlan> BuildPlan(const DatasetRecipe& recipe, const Tokenizer& tokenizer,
                                    const BuildPlanOptions& options) {
  SH_RETURN_IF_ERROR(CheckRecipe(recipe));
  SH_ASSIGN_OR_RETURN(const std::vector<SourceFile> files, FindSources(recipe.sources));
  if (files.empty()) return absl::InvalidArgumentError("dataset.sources: names no file");
  SH_ASSIGN_OR_RETURN(const std::vector<std::string> domains, Domains(files));
  SH_RETURN_IF_ERROR(MakeFolders(options.folder));
  SH_ASSIGN_OR_RETURN(
      const std::unique_ptr<PlanWriter> writer,
      PlanWriter::Create({.folder = options.folder,
                          .tokenizer = tokenizer.Fingerprint(),
                          .vocabulary = static_cast<uint32_t>(tokenizer.size()),
                          .max_tokens = static_cast<uint32_t>(recipe.max_tokens),
                          .shuffle_window = static_cast<uint32_t>(recipe.shuffle_window),
                          .chunk_tokens = static_cast<uint64_t>(recipe.chunk_tokens),
                          .seed = options.seed,
                          .domains = domains}));
  Builder builder(recipe, tokenizer, options, *writer);
  SH_RETURN_IF_ERROR(builder.ReadAll(files, domains));
  return builder.Finish();
}

Digest PlanInputsDigest(const std::vector<SourceFile>& files, const DatasetRecipe& recipe,
                        const Digest& tokenizer, uint64_t seed) {
  Sha256 hash;
  hash.AddField("stillhouse plan inputs").AddU64(kPlannerVersion).AddU64(kPlanVersion);
  hash.AddDigest(tokenizer).AddU64(seed);
  hash.AddU64(recipe.max_tokens).AddU64(static_cast<uint64_t>(recipe.when_longer));
  hash.AddField(absl::StrFormat("%.17g", recipe.held_out));
  hash.AddU64(recipe.shuffle_window).AddU64(recipe.chunk_tokens).AddU64(files.size());
  for (const SourceFile& file : files) {
    hash.AddField(file.path).AddField(file.domain).AddU64(file.bytes).AddU64(file.changed_ns);
  }
  return hash.Finish();
}

}  // namespace stillhouse

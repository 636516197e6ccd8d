#include "coordinator/ctl/starting_recipe.h"

#include <glob.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "common/file.h"
#include "common/status.h"
#include "coordinator/ctl/output.h"

namespace stillhouse {
namespace {

namespace fs = std::filesystem;

constexpr const char* kTextEndings[] = {".txt", ".md", ".rst", ".jsonl", ".ndjson"};
constexpr size_t kFilesListed = 8;  // more of one kind become a glob
constexpr int64_t kMaxTokens = 512;
constexpr int64_t kBatchTokens = 2048;
constexpr int64_t kMicroBatch = 1024;
constexpr double kBytesPerToken = 4.3;
constexpr int64_t kStepsMin = 20, kStepsMax = 2000;
constexpr int kEvaluations = 4;  // over the run

bool IsFolder(const std::string& path) {
  struct stat info {};
  return stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

// As a recipe in `folder` would say it.
std::string RelativeTo(const std::string& path, const std::string& folder) {
  return fs::path(path).lexically_proximate(folder).string();
}

// JSON strings are YAML.
std::string Quoted(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string NameFor(const StartingRecipe& start) {
  const std::string& text = start.texts.front();
  fs::path from = text;
  if (text.find_first_of("*?[") != std::string::npos) from = FolderOf(text);
  std::string name;
  for (const char c : absl::AsciiStrToLower(from.stem().string())) {
    const bool kept = absl::ascii_isalnum(static_cast<unsigned char>(c));
    if (kept) name += c;
    if (!kept && !name.empty() && name.back() != '-') name += '-';
  }
  while (!name.empty() && name.back() == '-') name.pop_back();
  return name.empty() ? "distil" : name.substr(0, 40);
}

std::string Ending(const std::string& path) { return fs::path(path).extension().string(); }

size_t CountMatches(const std::string& pattern) {
  glob_t found{};
  const size_t count =
      glob(pattern.c_str(), GLOB_NOSORT, nullptr, &found) == 0 ? found.gl_pathc : 0;
  globfree(&found);
  return count;
}

constexpr char kTemplate[] = R"(# A recipe: what is wanted. Paths are relative to this file.
#   coordinatorctl check $FILE     what it would cost
#   coordinatorctl local $FILE     run it on this machine
name: $NAME
teacher: {model: $TEACHER, dtype: bf16}  # or fp32
dataset:
  sources:  # text files, or JSON lines with "text" or "input_ids"
$SOURCES  max_tokens: $MAX_TOKENS    # of one document
  when_longer: split  # or refuse
  held_out: 0.05      # share of the sources kept for evaluation
  shuffle_window: 8   # chunks
capture:
  # $DRAWS draws from the teacher's distribution at each token: enough for an unbiased gradient, at
  # temperature 1. For other temperatures add "hidden: {last: true}" and use targets: hidden_last.
  logits: {method: sampled, draws: $DRAWS}
cache: {directory: cache}
output: runs
students:
  - name: half
    # The $KEEP of the teacher's $LAYERS layers that change its states most.
    init: {from: teacher, layers: {keep: $KEEP, by: block_influence}}
    dtype: bf16
    batch: {tokens: $BATCH, micro_batch: $MICRO_BATCH, packing: true}
    losses:
      - {kl: {targets: sampled, temperature: 1.0}, weight: 0.9}
      - {cross_entropy: {}, weight: 0.1}
    optimizer: {name: adamw, lr: 5e-4, betas: [0.9, 0.95], weight_decay: 0.01, warmup: 0.1, schedule: cosine, clip: 1.0}
    steps: $STEPS  # about $PASSES passes over the text
    seed: 0
    evaluate: {every: $EVERY}
    checkpoint: {every: $EVERY, keep: 2}
)";

}  // namespace

absl::StatusOr<std::vector<std::string>> FindTexts(const std::vector<std::string>& texts) {
  std::vector<std::string> found;
  std::map<std::pair<std::string, std::string>, std::vector<std::string>>
      files;  // by folder, ending
  for (const std::string& text : texts) {
    if (IsFolder(text)) {
      bool any = false;
      for (const char* ending : kTextEndings) {
        const std::string pattern = JoinPath(text, absl::StrCat("*", ending));
        if (CountMatches(pattern) == 0) continue;
        found.push_back(pattern);
        any = true;
      }
      if (!any) {
        return absl::NotFoundError(absl::StrCat(
            text, ": no text in this folder (looked for .txt, .md, .rst, .jsonl, .ndjson)"));
      }
    } else if (PathExists(text)) {
      files[{FolderOf(text), Ending(text)}].push_back(text);
    } else if (CountMatches(text) > 0) {
      found.push_back(text);
    } else {
      return absl::NotFoundError(absl::StrCat(text, ": no such file, folder or glob with a match"));
    }
  }
  for (const auto& [kind, paths] : files) {
    const std::string pattern = JoinPath(kind.first, absl::StrCat("*", kind.second));
    const bool all = paths.size() > kFilesListed && CountMatches(pattern) == paths.size();
    if (all) found.push_back(pattern);
    if (!all) found.insert(found.end(), paths.begin(), paths.end());
  }
  return found;
}

std::string WriteStartingRecipe(const StartingRecipe& start, uint64_t text_bytes) {
  const std::string folder = FolderOf(start.file);
  std::string sources;
  for (const std::string& text : start.texts) {
    absl::StrAppend(&sources, "    - {path: ", Quoted(RelativeTo(text, folder)), "}\n");
  }
  const int64_t max_tokens = std::min(kMaxTokens, start.config.max_positions);
  const double passes = static_cast<double>(text_bytes) / kBytesPerToken / kBatchTokens;
  const int64_t steps = std::clamp(static_cast<int64_t>(passes), kStepsMin, kStepsMax);
  const int64_t keep = std::max<int64_t>(1, start.config.layers / 2);
  return absl::StrReplaceAll(
      kTemplate,
      {{"$FILE", ShellWord(BaseName(start.file))},
       {"$NAME", NameFor(start)},
       {"$TEACHER", Quoted(RelativeTo(start.teacher, folder))},
       {"$SOURCES", sources},
       {"$MAX_TOKENS", absl::StrCat(max_tokens)},
       {"$DRAWS", "50"},
       {"$KEEP", absl::StrCat(keep)},
       {"$LAYERS", absl::StrCat(start.config.layers)},
       {"$BATCH", absl::StrCat(kBatchTokens)},
       {"$MICRO_BATCH", absl::StrCat(kMicroBatch)},
       {"$STEPS", absl::StrCat(steps)},
       {"$PASSES", absl::StrFormat("%.1f", static_cast<double>(steps) / std::max(passes, 0.01))},
       {"$EVERY", absl::StrCat(std::max<int64_t>(1, steps / kEvaluations))}});
}

}  // namespace stillhouse

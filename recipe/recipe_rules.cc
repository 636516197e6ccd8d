#include "recipe/recipe_rules.h"

#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/file.h"

namespace stillhouse {
namespace {

void CheckLoss(const Recipe& recipe, const LossRecipe& loss, const std::string& path,
               Report& report) {
  if (loss.kind != LossRecipe::Kind::kKl) return;
  const std::string kl = path + ".kl";
  if (loss.targets == LossRecipe::Targets::kHiddenLast) {
    if (!recipe.capture.hidden_last) {
      report.AddAt(kl + ".targets",
                   "hidden_last needs the teacher's last hidden state: write "
                   "\"hidden: {last: true}\" under capture");
    }
    return;
  }
  if (loss.targets == LossRecipe::Targets::kTopK) {
    bool captured = false;
    for (const TopRecipe& top : recipe.capture.top) captured |= top.p_millionths == 0;
    if (!captured) {
      report.AddAt(kl + ".targets",
                   "topk needs the teacher's most likely ids: write \"logits: {method: topk, k: "
                   "64}\" under capture");
    }
    if (loss.temperature != 1.0) {
      report.AddAt(kl + ".temperature",
                   "top-k targets hold the teacher at temperature 1; what lies outside them cannot "
                   "be brought to another: use 1.0, or targets: hidden_last");
    }
    return;
  }
  if (!recipe.capture.sampled_draws.has_value()) {
    report.AddAt(
        kl + ".targets",
        "sampled needs sampled logits: write \"logits: {method: sampled, draws: 50}\" under "
        "capture");
  }
  if (loss.temperature != 1.0) {
    report.AddAt(
        kl + ".temperature",
        "sampled targets hold the teacher at temperature 1; at another one their draws are "
        "almost only noise: use 1.0, or targets: hidden_last");
  }
}

void CheckBatch(const Recipe& recipe, const StudentRecipe& student, const std::string& path,
                Report& report) {
  // Documents are never cut again after the plan, so the longest must fit.
  const int64_t longest = recipe.dataset.max_tokens - 1;
  if (student.batch_tokens < longest) {
    report.AddAt(path + ".batch.tokens",
                 absl::StrCat("a document of dataset.max_tokens has ", longest,
                              " rows and must fit: at least ", longest));
  } else if (student.micro_batch < longest) {
    report.AddAt(path + ".batch.micro_batch",
                 absl::StrCat("a document of dataset.max_tokens has ", longest,
                              " rows and must fit: at least ", longest));
  } else if (student.micro_batch > student.batch_tokens) {
    report.AddAt(path + ".batch.micro_batch",
                 absl::StrCat("more than batch.tokens, which is ", student.batch_tokens));
  }
}

void CheckInit(const InitRecipe& init, const std::string& path, Report& report) {
  std::set<int64_t> seen;
  for (size_t i = 0; i < init.layers.size(); ++i) {
    const std::string place = absl::StrCat(path, ".init.layers[", i, "]");
    if (!seen.insert(init.layers[i]).second) report.AddAt(place, "a layer twice");
  }
  if (init.from == InitRecipe::From::kScratch) {
    if (!init.layers.empty()) {
      report.AddAt(path + ".init.layers",
                   "which layers matters only with \"from: teacher\"; from scratch write "
                   "\"layers: {keep: N}\"");
    }
    if (report.Has(path + ".init.layers.by")) {
      report.AddAt(path + ".init.layers.by", "layers are chosen only with \"from: teacher\"");
    }
  }
}

void CheckStudent(const Recipe& recipe, const StudentRecipe& student, const std::string& path,
                  Report& report) {
  CheckInit(student.init, path, report);
  CheckBatch(recipe, student, path, report);
  for (size_t i = 0; i < student.losses.size(); ++i) {
    CheckLoss(recipe, student.losses[i], absl::StrCat(path, ".losses[", i, "]"), report);
  }
  if (student.early_stop.has_value() && student.evaluate_every == 0) {
    report.AddAt(path + ".evaluate.early_stop", "needs evaluate.every: it counts evaluations");
  }
  if (student.ranks > student.batch_tokens) {
    report.AddAt(path + ".ranks",
                 absl::StrCat("more than batch.tokens, which is ", student.batch_tokens,
                              ": each step would leave some of them without a token"));
  }
}

void CheckCapture(const CaptureRecipe& capture, Report& report) {
  std::set<std::pair<int64_t, int64_t>> tops;
  for (const TopRecipe& top : capture.top) {
    if (tops.insert({top.k, top.p_millionths}).second) continue;
    report.AddAt("capture.logits", "the same top-k or top-p logits twice");
  }
  std::set<int64_t> layers;
  for (size_t i = 0; i < capture.hidden_layers.size(); ++i) {
    if (layers.insert(capture.hidden_layers[i]).second) continue;
    report.AddAt(absl::StrCat("capture.hidden.layers[", i, "]"), "a layer twice");
  }
  if (report.Has("capture.hidden.dtype") && capture.hidden_layers.empty()) {
    report.AddAt("capture.hidden.dtype",
                 "is that of hidden.layers, of which there are none; last is always bf16");
  }
}

// People are told to delete these, and a cache is worth more than they are.
void CheckCacheFolder(const Recipe& recipe, Report& report) {
  if (recipe.cache_directory == recipe.output) {
    report.AddAt("output", "the same folder as cache.directory");
  }
  const std::string inside = absl::StrCat(recipe.cache_directory, "/");
  for (const absl::string_view name : {".stillhouse", ".runs"}) {
    if (!absl::StartsWith(inside, absl::StrCat(JoinPath(recipe.output, name), "/"))) continue;
    report.AddAt("cache.directory", absl::StrCat("inside ", name,
                                                 " of output, which may be deleted when a run has "
                                                 "ended: use a folder outside"));
  }
}

}  // namespace

void CheckRules(const Recipe& recipe, Report& report) {
  if (recipe.dataset.chunk_tokens < recipe.dataset.max_tokens) {
    report.AddAt("dataset.chunk_tokens", absl::StrCat("less than dataset.max_tokens, which is ",
                                                      recipe.dataset.max_tokens));
  }
  CheckCacheFolder(recipe, report);
  CheckCapture(recipe.capture, report);
  if (recipe.cache.retention == CacheRecipe::Retention::kUntilRead && recipe.cache.bytes_max == 0) {
    report.AddAt("cache.retention",
                 "until_read makes room below cache.bytes_max, which is not set");
  }
  std::set<std::string> names;
  for (size_t i = 0; i < recipe.students.size(); ++i) {
    const std::string path = absl::StrCat("students[", i, "]");
    if (!names.insert(recipe.students[i].name).second) {
      report.AddAt(path + ".name",
                   absl::StrCat("a second student named ", recipe.students[i].name));
    }
    CheckStudent(recipe, recipe.students[i], path, report);
  }
}

}  // namespace stillhouse

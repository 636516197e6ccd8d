#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/file.h"
#include "recipe/recipe.h"

namespace stillhouse {
namespace {

// Fields under their names, so that a field added later changes only the recipes that use it.
class Canonical {
 public:
  void Add(absl::string_view key, absl::string_view value) { hash_.AddField(key).AddField(value); }
  void Add(absl::string_view key, int64_t value) { Add(key, absl::StrCat(value)); }
  void AddReal(absl::string_view key, double value) { Add(key, absl::StrFormat("%.17g", value)); }
  Digest Finish() { return hash_.Finish(); }

 private:
  Sha256 hash_;
};

// Paths below the recipe's folder count as relative, so that a moved folder keeps its runs.
std::string Portable(const Recipe& recipe, const std::string& path) {
  std::error_code error;
  const auto absolute = std::filesystem::absolute(recipe.path, error).lexically_normal();
  const std::string folder = FolderOf(absolute.string()) + "/";
  return absl::StartsWith(path, folder) ? path.substr(folder.size()) : path;
}

void AddShared(const Recipe& recipe, Canonical& out) {
  out.Add("recipe", 2);  // of this spelling
  out.Add("name", recipe.name);
  out.Add("teacher.model", Portable(recipe, recipe.teacher.model));
  out.Add("teacher.dtype", recipe.teacher.dtype);
  const DatasetRecipe& dataset = recipe.dataset;
  for (const SourceRecipe& source : dataset.sources) {
    out.Add("source.path", Portable(recipe, source.path));
    out.Add("source.domain", source.domain);
  }
  out.Add("max_tokens", dataset.max_tokens);
  out.Add("when_longer", dataset.when_longer == DatasetRecipe::WhenLonger::kSplit ? 0 : 1);
  out.AddReal("held_out", dataset.held_out);
  out.Add("shuffle_window", dataset.shuffle_window);
  out.Add("chunk_tokens", dataset.chunk_tokens);
  out.Add("capture.sampled", recipe.capture.sampled_draws.value_or(0));
  out.Add("capture.hidden_last", recipe.capture.hidden_last ? 1 : 0);
  // Spelt only where there are any, so that recipes from before keep their hashes.
  for (const TopRecipe& top : recipe.capture.top) {
    out.Add("capture.top", absl::StrCat(top.k, ",", top.p_millionths));
  }
  if (!recipe.capture.hidden_layers.empty()) {
    out.Add("capture.layers", absl::StrJoin(recipe.capture.hidden_layers, ","));
    out.Add("capture.layers_int8", recipe.capture.layers_int8 ? 1 : 0);
  }
}

void AddOptimizer(const OptimizerRecipe& optimizer, Canonical& out) {
  out.AddReal("lr", optimizer.lr);
  out.AddReal("beta1", optimizer.beta1);
  out.AddReal("beta2", optimizer.beta2);
  out.AddReal("epsilon", optimizer.epsilon);
  out.AddReal("weight_decay", optimizer.weight_decay);
  out.AddReal("warmup", optimizer.warmup);
  out.Add("schedule", optimizer.schedule == OptimizerRecipe::Schedule::kCosine ? 0 : 1);
  out.AddReal("clip", optimizer.clip);
}

void AddStudent(const StudentRecipe& student, Canonical& out) {
  out.Add("student", student.name);
  out.Add("from", student.init.from == InitRecipe::From::kScratch ? 0 : 1);
  out.Add("layers", absl::StrJoin(student.init.layers, ","));
  out.Add("keep", student.init.keep.value_or(0));
  out.Add("ranks", student.ranks);
  out.Add("dtype", student.dtype);
  out.Add("batch", student.batch_tokens);
  out.Add("micro_batch", student.micro_batch);
  out.Add("packing", student.packing ? 1 : 0);
  for (const LossRecipe& loss : student.losses) {
    const bool kl = loss.kind == LossRecipe::Kind::kKl;
    out.Add("loss", kl ? 0 : 1);
    if (kl) {
      switch (loss.targets) {
        case LossRecipe::Targets::kSampled:
          out.Add("targets", 0);
          break;
        case LossRecipe::Targets::kHiddenLast:
          out.Add("targets", 1);
          break;
        case LossRecipe::Targets::kTopK:
          out.Add("targets", 2);
          break;
      }
      out.AddReal("temperature", loss.temperature);
    }
    out.AddReal("weight", loss.weight);
  }
  AddOptimizer(student.optimizer, out);
  out.Add("steps", student.steps);
  out.Add("seed", absl::StrCat(student.seed));
  out.Add("evaluate_every", student.evaluate_every);
  out.Add("early_stop", student.early_stop.value_or(0));
  out.Add("checkpoint_every", student.checkpoint_every);
  out.Add("checkpoint_keep", student.checkpoint_keep);
}

}  // namespace

std::string RunName(const Recipe& recipe, const StudentRecipe& student) {
  return absl::StrCat("run/", recipe.name, "/", student.name);
}

Digest RunHash(const Recipe& recipe, const StudentRecipe& student, const RunInputs& inputs) {
  Canonical out;
  out.Add("plan", inputs.plan.AsStringView());
  out.Add("teacher", inputs.teacher.AsStringView());
  AddShared(recipe, out);
  AddStudent(student, out);
  return out.Finish();
}

std::string RunFolder(const Recipe& recipe, const StudentRecipe& student, const RunInputs& inputs) {
  return JoinPath(recipe.output, absl::StrCat(".runs/", student.name, "-",
                                              RunHash(recipe, student, inputs).ShortHex()));
}

}  // namespace stillhouse

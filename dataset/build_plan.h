// BuildPlan: from a recipe's dataset and a tokenizer to a plan file.
//
// Order: find the sources; read, tokenise and split them one at a time; choose what is held out by
// the hash of each source; deal documents into chunks; write (dataset/plan_format.h). The result is
// a pure function of the sources' contents in the order of the recipe, the tokenizer and the seed:
// paths, times and the name of the recipe do not enter it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/digest.h"
#include "dataset/sources.h"
#include "formats/tokenizer.h"
#include "recipe/recipe.h"

namespace stillhouse {

struct PlanProgress {
  uint64_t bytes_done = 0, bytes = 0;  // of source files
  uint64_t documents = 0, tokens = 0;
};

struct BuildPlanOptions {
  std::string folder;  // where the plan goes, as <digest>.plan; made if need be
  uint64_t seed = 0;
  std::function<void(const PlanProgress&)> progress;  // optional; at most once per source
};

struct BuiltPlan {
  std::string path;
  Digest digest;
  uint64_t sources = 0, held_out_sources = 0;
  uint64_t documents = 0, tokens = 0;
  // What a person should know: what was dropped, why nothing is held out. Whole sentences, most
  // often none.
  std::vector<std::string> notes;
};

// InvalidArgument or NotFound, naming a path (and line), for sources that cannot be used;
// InvalidArgument when nothing is left to train on.
absl::StatusOr<BuiltPlan> BuildPlan(const DatasetRecipe& recipe, const Tokenizer& tokenizer,
                                    const BuildPlanOptions& options);

// What a plan depends on, cheaply: files by path, size and time of change, the recipe's dataset,
// tokenizer, seed and the version of this code. Equal digests mean an earlier plan may be used
// again.
Digest PlanInputsDigest(const std::vector<SourceFile>& files, const DatasetRecipe& recipe,
                        const Digest& tokenizer, uint64_t seed);

}  // namespace stillhouse

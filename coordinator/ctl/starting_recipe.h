// The recipe that `init` writes: complete, with a word on each choice, and right for its teacher.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "formats/model_config.h"
#include "recipe/recipe.h"

namespace stillhouse {

struct StartingRecipe {
  std::string file;     // where it will lie, for relative paths and the commands it names
  std::string teacher;  // absolute path
  ModelConfig config;   // the teacher's
  std::vector<std::string> texts;  // absolute paths, folders and globs
};

// What `texts` mean as sources: a folder becomes globs over the kinds of text in it, many files
// that are all of one kind in their folder become one glob. NotFound, naming it, for what is not
// there or holds no text.
absl::StatusOr<std::vector<std::string>> FindTexts(const std::vector<std::string>& texts);

// The recipe's text. `text_bytes` sets the number of steps: about one pass over the text,
// within limits.
std::string WriteStartingRecipe(const StartingRecipe& start, uint64_t text_bytes);

}  // namespace stillhouse

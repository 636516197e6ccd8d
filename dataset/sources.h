// Sources: what a person wrote, read one at a time so that a corpus never lies in memory as a
// whole.
//
// A file whose name ends in .jsonl or .ndjson holds one source per line, a JSON object with
//   "text": a string, or
//   "input_ids": token ids, with an optional "loss_mask" of as many 0s and 1s;
// other keys are left alone, blank lines skipped. Any other file is one source of plain UTF-8 text;
// a byte order mark at its start is not part of the text. Every refusal names "path" or
// "path:line".
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "common/digest.h"
#include "recipe/recipe.h"

namespace stillhouse {

inline constexpr uint64_t kTextSourceBytesMax = 256ull
                                                << 20;  // one text file is tokenised in one go
inline constexpr uint64_t kJsonLineBytesMax = 64ull
                                              << 20;   // a parsed line takes ~10 times its size
inline constexpr size_t kSourceFilesMax = 10'000'000;  // keeps the list of files in memory small

struct SourceFile {
  std::string path;
  std::string domain;  // never empty: "default" where the recipe names none
  bool json_lines = false;
  uint64_t bytes = 0;
  int64_t changed_ns = 0;  // time of last change, to notice that a file is not the one seen before
};

// The files of all globs, in order of recipe, then of name. `*`, `?` and `[…]` within one folder
// level. NotFound when a glob matches nothing; InvalidArgument when two match the same file.
absl::StatusOr<std::vector<SourceFile>> FindSources(const std::vector<SourceRecipe>& recipes);

struct Source {
  std::string where;  // "path" or "path:line"
  bool is_ids = false;
  std::string text;                // unless is_ids
  std::vector<int32_t> ids;        // if is_ids: each in [0, id_bound)
  std::vector<uint8_t> loss_mask;  // if is_ids: as many as ids

  // Of what it says, not of where it lies: decides whether the source is held out.
  Digest ContentHash() const;
};

// Calls `each` for every source of the file, in order; stops at the first error.
// `each` gets the number of bytes read so far too.
absl::Status ReadSources(const SourceFile& file, int32_t id_bound,
                         absl::FunctionRef<absl::Status(Source, uint64_t bytes_read)> each);

}  // namespace stillhouse

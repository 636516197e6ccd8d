// TokenizerSpec: a byte-level BPE tokenizer as data, between its files (tokenizer.json, GGUF) and
// the code that runs it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "formats/gguf.h"
#include "formats/tokenizer.h"

namespace stillhouse {

inline constexpr int32_t kTokenizerSizeMax = 1 << 22;
inline constexpr uint64_t kTokenizerJsonBytesMax = 256ull << 20;

// A token that is looked for in the text before anything else.
struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;  // left out by Decode(skip_special)
};

// One step of a pre-tokenizer: cuts every piece of the step before at the matches of a pattern.
struct SplitStep {
  enum class Kind {
    kDigits,     // numbers, alone or in runs
    kPattern,    // a regular expression
    kLiteral,    // an exact string
    kByteLevel,  // GPT-2's pattern; always the last step
  };
  Kind kind = Kind::kByteLevel;
  std::string pattern;             // kPattern, kLiteral
  bool individual_digits = false;  // kDigits
  bool use_regex = true;           // kByteLevel: false cuts nothing
  bool add_prefix_space = false;   // kByteLevel: pieces that do not begin with a space get one
  bool keep_matches = true;        // kPattern, kLiteral: false drops them ("Removed")
  bool keep_between = true;        // false drops what lies between ("Removed" inverted)

  friend bool operator==(const SplitStep&, const SplitStep&) = default;
};

struct TokenizerSpec {
  std::vector<std::string> tokens;  // by id, in the byte-level alphabet; "" where no token is
  std::vector<std::pair<int32_t, int32_t>>
      merges;                     // by rank; the result is the token of both texts
  std::vector<AddedToken> added;  // by id
  std::vector<SplitStep> steps;   // the last is kByteLevel
  bool ignore_merges = false;     // a piece that is a token as a whole is taken whole
  std::optional<int32_t> bos_id;
  std::optional<int32_t> eos_id;
  std::optional<int32_t> pad_id;
  std::optional<int32_t> unk_id;
  bool adds_bos = false;
  std::string chat_template;  // Jinja; "" for none
  // Files to write verbatim, name and bytes. Empty: they are generated.
  std::vector<std::pair<std::string, std::string>> files;
};

// InvalidArgument or Unimplemented for what the spec says that we cannot run exactly.
absl::StatusOr<std::shared_ptr<const Tokenizer>> MakeTokenizer(TokenizerSpec spec);

// `path` is for messages. Unimplemented, naming it, for a component we lack.
absl::StatusOr<TokenizerSpec> ParseTokenizerJson(absl::string_view json, absl::string_view path);
// Special ids and the chat template from tokenizer_config.json's text.
absl::Status ReadTokenizerConfig(absl::string_view json, absl::string_view path,
                                 TokenizerSpec& spec);
absl::StatusOr<TokenizerSpec> GgufTokenizerSpec(const GgufFile& file);

std::string TokenizerJson(const TokenizerSpec& spec);
std::string TokenizerConfigJson(const TokenizerSpec& spec);
std::string SpecialTokensMapJson(const TokenizerSpec& spec);

}  // namespace stillhouse

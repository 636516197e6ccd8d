// TokenizerSpec: a BPE tokenizer as data, between its files (tokenizer.json, GGUF) and the code
// that runs it.
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
#include "formats/unicode_forms.h"

namespace stillhouse {

inline constexpr int32_t kTokenizerSizeMax = 1 << 22;
inline constexpr uint64_t kTokenizerJsonBytesMax = 256ull << 20;
inline constexpr size_t kTokenBytesMax = 16 * 1024;  // real ones have up to some hundred

// A token that is looked for in the text before anything else.
struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;       // left out by Decode(skip_special)
  bool single_word = false;   // only where no word character stands beside it
  bool lstrip = false;        // takes in the white space before it
  bool rstrip = false;        // … and after it
  bool normalized = false;    // looked for in the normalised text, in its own normalised form
  bool in_vocabulary = true;  // the model too knows it as a token

  friend bool operator==(const AddedToken&, const AddedToken&) = default;
};

// One step of a normalizer, which sees the text between the added tokens that are not `normalized`.
struct NormalizerStep {
  enum class Kind {
    kUnicode,         // one of Unicode's normal forms
    kPrepend,         // `content` before a text that is not empty
    kReplacePattern,  // every match of a regular expression by `content`
    kReplaceLiteral,  // every occurrence of a string by `content`
  };
  Kind kind = Kind::kUnicode;
  UnicodeForm form = UnicodeForm::kNfc;
  std::string pattern;
  std::string content;

  friend bool operator==(const NormalizerStep&, const NormalizerStep&) = default;
};

// One step of a pre-tokenizer: cuts every piece of the step before at the matches of a pattern.
struct SplitStep {
  enum class Kind {
    kDigits,     // numbers, alone or in runs
    kPattern,    // a regular expression
    kLiteral,    // an exact string
    kByteLevel,  // GPT-2's pattern, and its alphabet for bytes
    kMetaspace,  // spaces become `pattern`, one character, and each begins a piece
  };
  // What becomes of the matches.
  enum class Behavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };
  enum class Prepend { kNever, kFirst, kAlways };

  Kind kind = Kind::kByteLevel;
  std::string pattern;                      // kPattern, kLiteral, kMetaspace
  bool individual_digits = false;           // kDigits
  bool use_regex = true;                    // kByteLevel: false cuts nothing
  bool add_prefix_space = false;            // kByteLevel: pieces without a space before get one
  Behavior behavior = Behavior::kIsolated;  // kPattern, kLiteral, kMetaspace
  bool invert = false;                      // what lies between matches counts as the match
  Prepend prepend = Prepend::kNever;        // kMetaspace: a `pattern` before pieces without one
  bool split = true;                        // kMetaspace: false cuts nothing

  friend bool operator==(const SplitStep&, const SplitStep&) = default;
};

// One step of a decoder, each from a list of strings to a list of strings, joined at the end.
struct DecoderStep {
  enum class Kind {
    kByteLevel,       // out of its alphabet; broken UTF-8 is replaced
    kReplacePattern,  // in every string
    kReplaceLiteral,
    kByteFallback,  // runs of <0x41> become the characters they spell
    kFuse,          // into one string
    kStrip,         // up to `start` and `stop` times the character `content` off the ends
    kMetaspace,     // `pattern` becomes a space, or nothing at the very beginning if `prepends`
  };
  Kind kind = Kind::kByteLevel;
  std::string pattern;
  std::string content;
  int64_t start = 0;
  int64_t stop = 0;
  bool prepends = false;

  friend bool operator==(const DecoderStep&, const DecoderStep&) = default;
};

struct TokenizerSpec {
  std::vector<std::string> tokens;  // by id, as the file has them; "" where no token is
  std::vector<std::pair<int32_t, int32_t>>
      merges;                     // by rank; the result is the token of both texts
  std::vector<AddedToken> added;  // by id
  std::vector<NormalizerStep> normalizer;
  std::vector<SplitStep> steps;
  std::vector<DecoderStep> decoder = {DecoderStep()};
  bool ignore_merges = false;      // a piece that is a token as a whole is taken whole
  bool byte_fallback = false;      // unknown characters become their bytes' <0x41> tokens
  std::optional<int32_t> unknown;  // the model's token for what has none
  bool fuse_unknown = false;       // … once for a run of them
  std::vector<int32_t> prefix;     // what the post-processor puts before a text
  std::vector<int32_t> suffix;     // … and after it
  // The post-processor's steps that take the spaces at the ends of a token out of its offsets, by
  // whether a space before the text is thought to be added.
  std::vector<bool> trims;

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

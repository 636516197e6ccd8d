#include "formats/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/match.h"
#include "common/status.h"
#include "formats/utf8.h"

namespace stillhouse {
namespace {

// White_Space, which is Oniguruma's \s. PCRE2's \s also has U+180E.
constexpr absl::string_view kSpace =
    "\\x{09}-\\x{0d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"
    "\\x{205f}\\x{3000}";
// What each category has in the Unicode of `tokenizers` 0.23 (16) and not in that of PCRE2 10.42
// (14), found by matching every code point with both; the tests named class_… keep it so. Nothing
// went the other way, but for \p{Mn}, \p{C} and \p{Cn}, which are not implemented.
struct Category {
  absl::string_view name;
  absl::string_view newer;
};
constexpr Category kCategories[] = {
    {"L",
     "\\x{1c89}-\\x{1c8a}\\x{a7cb}-\\x{a7cd}\\x{a7da}-\\x{a7dc}\\x{105c0}-\\x{105f3}"
     "\\x{10d4a}-\\x{10d65}\\x{10d6f}-\\x{10d85}\\x{10ec2}-\\x{10ec4}\\x{1123f}-\\x{11240}"
     "\\x{11380}-\\x{11389}\\x{1138b}\\x{1138e}\\x{11390}-\\x{113b5}\\x{113b7}\\x{113d1}"
     "\\x{113d3}\\x{11bc0}-\\x{11be0}\\x{11f02}\\x{11f04}-\\x{11f10}\\x{11f12}-\\x{11f33}"
     "\\x{1342f}\\x{13441}-\\x{13446}\\x{13460}-\\x{143fa}\\x{16100}-\\x{1611d}"
     "\\x{16d40}-\\x{16d6c}\\x{18cff}\\x{1b132}\\x{1b155}\\x{1df25}-\\x{1df2a}"
     "\\x{1e030}-\\x{1e06d}\\x{1e4d0}-\\x{1e4eb}\\x{1e5d0}-\\x{1e5ed}\\x{1e5f0}\\x{2b739}"
     "\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}"},
    {"Lu", "\\x{1c89}\\x{a7cb}-\\x{a7cc}\\x{a7da}\\x{a7dc}\\x{10d50}-\\x{10d65}"},
    {"Ll", "\\x{1c8a}\\x{a7cd}\\x{a7db}\\x{10d70}-\\x{10d85}\\x{1df25}-\\x{1df2a}"},
    {"Lt", ""},
    {"Lm",
     "\\x{10d4e}\\x{10d6f}\\x{16d40}-\\x{16d42}\\x{16d6b}-\\x{16d6c}\\x{1e030}-\\x{1e06d}"
     "\\x{1e4eb}"},
    {"Lo",
     "\\x{105c0}-\\x{105f3}\\x{10d4a}-\\x{10d4d}\\x{10d4f}\\x{10ec2}-\\x{10ec4}"
     "\\x{1123f}-\\x{11240}\\x{11380}-\\x{11389}\\x{1138b}\\x{1138e}\\x{11390}-\\x{113b5}"
     "\\x{113b7}\\x{113d1}\\x{113d3}\\x{11bc0}-\\x{11be0}\\x{11f02}\\x{11f04}-\\x{11f10}"
     "\\x{11f12}-\\x{11f33}\\x{1342f}\\x{13441}-\\x{13446}\\x{13460}-\\x{143fa}"
     "\\x{16100}-\\x{1611d}\\x{16d43}-\\x{16d6a}\\x{18cff}\\x{1b132}\\x{1b155}"
     "\\x{1e4d0}-\\x{1e4ea}\\x{1e5d0}-\\x{1e5ed}\\x{1e5f0}\\x{2b739}\\x{2ebf0}-\\x{2ee5d}"
     "\\x{31350}-\\x{323af}"},
    {"M",
     "\\x{897}\\x{cf3}\\x{ece}\\x{10d69}-\\x{10d6d}\\x{10efc}-\\x{10eff}\\x{11241}"
     "\\x{113b8}-\\x{113c0}\\x{113c2}\\x{113c5}\\x{113c7}-\\x{113ca}\\x{113cc}-\\x{113d0}"
     "\\x{113d2}\\x{113e1}-\\x{113e2}\\x{11f00}-\\x{11f01}\\x{11f03}\\x{11f34}-\\x{11f3a}"
     "\\x{11f3e}-\\x{11f42}\\x{11f5a}\\x{13440}\\x{13447}-\\x{13455}\\x{1611e}-\\x{1612f}"
     "\\x{1e08f}\\x{1e4ec}-\\x{1e4ef}\\x{1e5ee}-\\x{1e5ef}"},
    {"Mc",
     "\\x{cf3}\\x{113b8}-\\x{113ba}\\x{113c2}\\x{113c5}\\x{113c7}-\\x{113ca}"
     "\\x{113cc}-\\x{113cd}\\x{113cf}\\x{1171e}\\x{11f03}\\x{11f34}-\\x{11f35}"
     "\\x{11f3e}-\\x{11f3f}\\x{11f41}\\x{1612a}-\\x{1612c}"},
    {"Me", ""},
    {"N",
     "\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}\\x{11f50}-\\x{11f59}"
     "\\x{16130}-\\x{16139}\\x{16d70}-\\x{16d79}\\x{1ccf0}-\\x{1ccf9}\\x{1d2c0}-\\x{1d2d3}"
     "\\x{1e4f0}-\\x{1e4f9}\\x{1e5f1}-\\x{1e5fa}"},
    {"Nd",
     "\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}\\x{11f50}-\\x{11f59}"
     "\\x{16130}-\\x{16139}\\x{16d70}-\\x{16d79}\\x{1ccf0}-\\x{1ccf9}\\x{1e4f0}-\\x{1e4f9}"
     "\\x{1e5f1}-\\x{1e5fa}"},
    {"Nl", ""},
    {"No", "\\x{1d2c0}-\\x{1d2d3}"},
    {"P",
     "\\x{1b4e}-\\x{1b4f}\\x{1b7f}\\x{10d6e}\\x{113d4}-\\x{113d5}\\x{113d7}-\\x{113d8}"
     "\\x{11b00}-\\x{11b09}\\x{11be1}\\x{11f43}-\\x{11f4f}\\x{16d6d}-\\x{16d6f}\\x{1e5ff}"},
    {"Pc", ""},
    {"Pd", "\\x{10d6e}"},
    {"Ps", ""},
    {"Pe", ""},
    {"Pi", ""},
    {"Pf", ""},
    {"Po",
     "\\x{1b4e}-\\x{1b4f}\\x{1b7f}\\x{113d4}-\\x{113d5}\\x{113d7}-\\x{113d8}"
     "\\x{11b00}-\\x{11b09}\\x{11be1}\\x{11f43}-\\x{11f4f}\\x{16d6d}-\\x{16d6f}\\x{1e5ff}"},
    {"S",
     "\\x{2427}-\\x{2429}\\x{2ffc}-\\x{2fff}\\x{31e4}-\\x{31e5}\\x{31ef}\\x{10d8e}-\\x{10d8f}"
     "\\x{1cc00}-\\x{1ccef}\\x{1cd00}-\\x{1ceb3}\\x{1f6dc}\\x{1f774}-\\x{1f776}"
     "\\x{1f77b}-\\x{1f77f}\\x{1f7d9}\\x{1f8b2}-\\x{1f8bb}\\x{1f8c0}-\\x{1f8c1}"
     "\\x{1fa75}-\\x{1fa77}\\x{1fa87}-\\x{1fa89}\\x{1fa8f}\\x{1faad}-\\x{1faaf}"
     "\\x{1fabb}-\\x{1fabf}\\x{1fac6}\\x{1face}-\\x{1facf}\\x{1fada}-\\x{1fadc}\\x{1fadf}"
     "\\x{1fae8}-\\x{1fae9}\\x{1faf7}-\\x{1faf8}\\x{1fbcb}-\\x{1fbef}"},
    {"Sm", "\\x{10d8e}-\\x{10d8f}"},
    {"Sc", ""},
    {"Sk", ""},
    {"So",
     "\\x{2427}-\\x{2429}\\x{2ffc}-\\x{2fff}\\x{31e4}-\\x{31e5}\\x{31ef}\\x{1cc00}-\\x{1ccef}"
     "\\x{1cd00}-\\x{1ceb3}\\x{1f6dc}\\x{1f774}-\\x{1f776}\\x{1f77b}-\\x{1f77f}\\x{1f7d9}"
     "\\x{1f8b2}-\\x{1f8bb}\\x{1f8c0}-\\x{1f8c1}\\x{1fa75}-\\x{1fa77}\\x{1fa87}-\\x{1fa89}"
     "\\x{1fa8f}\\x{1faad}-\\x{1faaf}\\x{1fabb}-\\x{1fabf}\\x{1fac6}\\x{1face}-\\x{1facf}"
     "\\x{1fada}-\\x{1fadc}\\x{1fadf}\\x{1fae8}-\\x{1fae9}\\x{1faf7}-\\x{1faf8}"
     "\\x{1fbcb}-\\x{1fbef}"},
    {"Z", ""},
    {"Zs", ""},
    {"Zl", ""},
    {"Zp", ""},
};
// The Digits pre-tokenizer goes by Rust's tables, one Unicode version further on.
constexpr absl::string_view kNewRustNumbers = "\\x{11de0}-\\x{11de9}\\x{16ff4}-\\x{16ff6}";

// The members of a category, to stand in brackets; "" if it is not implemented.
std::string CategoryMembers(absl::string_view name) {
  for (const Category& category : kCategories) {
    if (category.name == name) return absl::StrCat("\\p{", name, "}", category.newer);
  }
  return "";
}

// Rewrites one pattern from left to right.
class Rewriter {
 public:
  explicit Rewriter(absl::string_view pattern) : rest_(pattern) {}

  absl::StatusOr<std::string> Run() {
    while (!rest_.empty()) {
      const char c = rest_.front();
      if (c == '\\') {
        SH_RETURN_IF_ERROR(Escape());
      } else if (in_class_) {
        SH_RETURN_IF_ERROR(InClass(c));
      } else {
        SH_RETURN_IF_ERROR(Outside(c));
      }
    }
    if (in_class_) return absl::InvalidArgumentError("a bracket is not closed");
    return std::move(out_);
  }

 private:
  static absl::Status Lacking(absl::string_view construct) {
    return absl::UnimplementedError(
        absl::StrCat("pattern construct \"", construct, "\" is not implemented"));
  }

  void Copy(size_t count) {
    absl::StrAppend(&out_, rest_.substr(0, count));
    rest_.remove_prefix(count);
  }

  absl::Status Outside(char c) {
    // Line ends mean other things in the two dialects.
    if (c == '^' || c == '$') return Lacking(std::string(1, c));
    if (c == '[') {
      in_class_ = true;
      Copy(1);
      if (!rest_.empty() && rest_.front() == '^') Copy(1);
      if (!rest_.empty() && rest_.front() == ']') return Lacking("[]");
      return absl::OkStatus();
    }
    if (absl::StartsWith(rest_, "(?")) {
      for (const absl::string_view known : {"(?i:", "(?:", "(?!", "(?=", "(?<!", "(?<=", "(?>"}) {
        if (absl::StartsWith(rest_, known)) {
          Copy(known.size());
          return absl::OkStatus();
        }
      }
      return Lacking(rest_.substr(0, 4));
    }
    if (absl::StartsWith(rest_, "(*")) return Lacking("(*");
    // Oniguruma repeats an interval where PCRE2 makes it possessive, and counts from 0 where PCRE2
    // sees plain text.
    if (absl::StartsWith(rest_, "}+")) return Lacking("}+");
    if (absl::StartsWith(rest_, "{,")) return Lacking("{,");
    Copy(1);
    return absl::OkStatus();
  }

  absl::Status InClass(char c) {
    if (c == '[') return Lacking("a bracket within brackets");
    if (absl::StartsWith(rest_, "&&")) return Lacking("&&");
    if (c == ']') in_class_ = false;
    Copy(1);
    return absl::OkStatus();
  }

  // A class by its members, as an atom or as part of the bracket we are in.
  void Members(absl::string_view members, bool negated) {
    absl::StrAppend(&out_, in_class_ ? "" : negated ? "[^" : "[", members, in_class_ ? "" : "]");
  }

  absl::Status Property() {
    const bool negated = rest_[1] == 'P';
    const size_t close = rest_.find('}');
    if (rest_.size() < 4 || rest_[2] != '{' || close == absl::string_view::npos) {
      return Lacking(rest_.substr(0, 2));
    }
    const absl::string_view name = rest_.substr(3, close - 3);
    const std::string members = CategoryMembers(name);
    if (members.empty()) return Lacking(rest_.substr(0, std::min<size_t>(close + 1, 40)));
    if (negated && in_class_) return Lacking(absl::StrCat("\\P{", name, "} within brackets"));
    Members(members, negated);
    rest_.remove_prefix(close + 1);
    return absl::OkStatus();
  }

  absl::Status Escape() {
    if (rest_.size() < 2) return absl::InvalidArgumentError("a backslash at the end");
    const char c = rest_[1];
    if (c == 'p' || c == 'P') return Property();
    if (c == 's' || c == 'S' || c == 'd' || c == 'D') {
      const bool negated = c == 'S' || c == 'D';
      if (negated && in_class_)
        return Lacking(absl::StrCat("\\", std::string(1, c), " in brackets"));
      const bool space = c == 's' || c == 'S';
      Members(space ? std::string(kSpace) : CategoryMembers("Nd"), negated);
      rest_.remove_prefix(2);
      return absl::OkStatus();
    }
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (letter && c != 'r' && c != 'n' && c != 't') return Lacking(rest_.substr(0, 2));
    Copy(2);
    return absl::OkStatus();
  }

  absl::string_view rest_;
  std::string out_;
  bool in_class_ = false;
};

std::string PcreMessage(int code) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Regex>> Regex::CompilePcre(absl::string_view pattern,
                                                                uint32_t options) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                   PCRE2_UTF | options, &error, &offset, nullptr);
  if (code == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("pattern does not compile: ", PcreMessage(error)));
  }
  std::shared_ptr<Regex> regex(new Regex);
  regex->code_ = code;
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // where it is not there, PCRE2 interprets
  uint32_t empty = 0;
  pcre2_pattern_info(code, PCRE2_INFO_MATCHEMPTY, &empty);
  regex->may_match_empty_ = empty != 0;
  return std::shared_ptr<const Regex>(std::move(regex));
}

absl::StatusOr<std::shared_ptr<const Regex>> Regex::Compile(absl::string_view pattern) {
  if (pattern.size() > kRegexPatternMax || FindInvalidUtf8(pattern) != absl::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("a pattern of ", pattern.size(), " bytes is too long, or not UTF-8"));
  }
  SH_ASSIGN_OR_RETURN(const std::string rewritten, Rewriter(pattern).Run());
  return CompilePcre(rewritten, PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C);
}

absl::StatusOr<std::shared_ptr<const Regex>> Regex::Literal(absl::string_view text) {
  if (text.size() > kRegexPatternMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a pattern of ", text.size(), " bytes is past the limit of ", kRegexPatternMax));
  }
  return CompilePcre(text, PCRE2_LITERAL);
}

std::shared_ptr<const Regex> Regex::Digits(bool individually) {
  auto regex = CompilePcre(
      absl::StrCat("[", CategoryMembers("N"), kNewRustNumbers, "]", individually ? "" : "+"),
      PCRE2_UCP);
  SH_CHECK_OK(regex);
  return *std::move(regex);
}

Regex::~Regex() { pcre2_code_free(static_cast<pcre2_code*>(code_)); }

Regex::Matcher::Matcher(const Regex& regex)
    : regex_(regex),
      data_(pcre2_match_data_create(1, nullptr)),
      context_(pcre2_match_context_create(nullptr)) {
  SH_CHECK(data_ != nullptr && context_ != nullptr);
  pcre2_set_heap_limit(static_cast<pcre2_match_context*>(context_), kRegexHeapLimitKib);
}

Regex::Matcher::~Matcher() {
  pcre2_match_data_free(static_cast<pcre2_match_data*>(data_));
  pcre2_match_context_free(static_cast<pcre2_match_context*>(context_));
}

int Regex::Matcher::Match(uint32_t options) {
  return pcre2_match(static_cast<const pcre2_code*>(regex_.code_),
                     reinterpret_cast<PCRE2_SPTR>(text_.data()), text_.size(), from_,
                     PCRE2_NO_UTF_CHECK | options, static_cast<pcre2_match_data*>(data_),
                     static_cast<pcre2_match_context*>(context_));
}

int Regex::Matcher::MatchWithin(uint32_t limit) {
  pcre2_set_match_limit(static_cast<pcre2_match_context*>(context_), limit);
  const int result = Match(0);
  // The interpreter keeps its stack on the heap, within the limit set.
  return result == PCRE2_ERROR_JIT_STACKLIMIT ? Match(PCRE2_NO_JIT) : result;
}

absl::StatusOr<bool> Regex::Matcher::Next(size_t* begin, size_t* end) {
  while (from_ <= text_.size()) {
    // PCRE2 does not say how many steps a match took: it is tried within few, then within more, and
    // only those beyond the few are counted.
    uint32_t limit = 1000;
    int result = MatchWithin(limit);
    while (result == PCRE2_ERROR_MATCHLIMIT && limit < kRegexMatchLimit &&
           spent_ < kRegexTextLimit) {
      limit *= 10;
      spent_ += limit;
      result = MatchWithin(limit);
    }
    if (result == PCRE2_ERROR_NOMATCH) return false;
    if (result < 0) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the tokenizer's pattern gave up on this text: ", PcreMessage(result)));
    }
    const PCRE2_SIZE* place = pcre2_get_ovector_pointer(static_cast<pcre2_match_data*>(data_));
    if (place[0] == place[1] && place[1] == last_end_) {
      from_ += std::max(1, Utf8Length(text_.substr(std::min(from_, text_.size()), 4)));
      continue;
    }
    from_ = last_end_ = place[1];
    *begin = place[0];
    *end = place[1];
    return true;
  }
  return false;
}

absl::Status Regex::Matcher::ForEach(absl::string_view text,
                                     absl::FunctionRef<void(size_t begin, size_t end)> match) {
  text_ = text;
  from_ = 0;
  last_end_ = absl::string_view::npos;
  for (;;) {
    size_t begin = 0;
    size_t end = 0;
    SH_ASSIGN_OR_RETURN(const bool more, Next(&begin, &end));
    if (!more) return absl::OkStatus();
    match(begin, end);
  }
}

}  // namespace stillhouse

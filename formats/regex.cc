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
// Letters and numbers of Unicode 15 and 16, which `tokenizers` 0.23 knows and PCRE2 10.42 does not
// (found by splitting every code point with both; UnicodeClassTest keeps it so).
constexpr absl::string_view kNewLetters =
    "\\x{1c89}-\\x{1c8a}\\x{a7cb}-\\x{a7cd}\\x{a7da}-\\x{a7dc}\\x{105c0}-\\x{105f3}\\x{10d4a}-\\x{"
    "10d65}"
    "\\x{10d6f}-\\x{10d85}\\x{10ec2}-\\x{10ec4}\\x{1123f}-\\x{11240}\\x{11380}-\\x{11389}\\x{1138b}"
    "\\x{1138e}\\x{11390}-\\x{113b5}\\x{113b7}\\x{113d1}\\x{113d3}\\x{11bc0}-\\x{11be0}\\x{11f02}"
    "\\x{11f04}-\\x{11f10}\\x{11f12}-\\x{11f33}\\x{1342f}\\x{13441}-\\x{13446}\\x{13460}-\\x{143fa}"
    "\\x{16100}-\\x{1611d}\\x{16d40}-\\x{16d6c}\\x{18cff}\\x{1b132}\\x{1b155}\\x{1df25}-\\x{1df2a}"
    "\\x{1e030}-\\x{1e06d}\\x{1e4d0}-\\x{1e4eb}\\x{1e5d0}-\\x{1e5ed}\\x{1e5f0}\\x{2b739}"
    "\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}";
constexpr absl::string_view kNewDecimals =
    "\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}\\x{11f50}-\\x{11f59}"
    "\\x{16130}-\\x{16139}\\x{16d70}-\\x{16d79}\\x{1ccf0}-\\x{1ccf9}\\x{1e4f0}-\\x{1e4f9}"
    "\\x{1e5f1}-\\x{1e5fa}";
constexpr absl::string_view kNewOtherNumbers = "\\x{1d2c0}-\\x{1d2d3}";
// The Digits pre-tokenizer goes by Rust's tables, one Unicode version further on.
constexpr absl::string_view kNewRustNumbers = "\\x{11de0}-\\x{11de9}\\x{16ff4}-\\x{16ff6}";

std::string NumberClass() { return absl::StrCat("\\p{N}", kNewDecimals, kNewOtherNumbers); }

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
    std::string members;
    if (name == "L") {
      members = absl::StrCat("\\p{L}", kNewLetters);
    } else if (name == "N") {
      members = NumberClass();
    } else if (name == "Nd") {
      members = absl::StrCat("\\p{Nd}", kNewDecimals);
    } else {
      // The other categories are PCRE2's own (Unicode 14 in Debian 12).
      for (const absl::string_view known :
           {"Lu", "Ll", "Lt", "Lm", "Lo", "M", "Mn", "Mc", "Me", "Nl", "No", "P", "S", "Z"}) {
        if (name == known) {
          Copy(close + 1);
          return absl::OkStatus();
        }
      }
      return Lacking(rest_.substr(0, std::min<size_t>(close + 1, 40)));
    }
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
      Members(space ? std::string(kSpace) : absl::StrCat("\\p{Nd}", kNewDecimals), negated);
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
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  SH_CHECK(context != nullptr);
  pcre2_set_match_limit(context, kRegexMatchLimit);
  pcre2_set_heap_limit(context, kRegexHeapLimitKib);
  regex->context_ = context;
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
  if (text.empty() || text.size() > kRegexPatternMax) {
    return absl::InvalidArgumentError("a split string must have 1 to 16384 bytes");
  }
  return CompilePcre(text, PCRE2_LITERAL);
}

std::shared_ptr<const Regex> Regex::Digits(bool individually) {
  auto regex = CompilePcre(
      absl::StrCat("[", NumberClass(), kNewRustNumbers, "]", individually ? "" : "+"), PCRE2_UCP);
  SH_CHECK_OK(regex);
  return *std::move(regex);
}

Regex::~Regex() {
  pcre2_match_context_free(static_cast<pcre2_match_context*>(context_));
  pcre2_code_free(static_cast<pcre2_code*>(code_));
}

Regex::Matcher::Matcher(const Regex& regex)
    : regex_(regex), data_(pcre2_match_data_create(1, nullptr)) {
  SH_CHECK(data_ != nullptr);
}

Regex::Matcher::~Matcher() { pcre2_match_data_free(static_cast<pcre2_match_data*>(data_)); }

absl::StatusOr<bool> Regex::Matcher::Next(absl::string_view text, size_t from, size_t* begin,
                                          size_t* end) {
  auto* code = static_cast<pcre2_code*>(regex_.code_);
  auto* context = static_cast<pcre2_match_context*>(regex_.context_);
  auto* data = static_cast<pcre2_match_data*>(data_);
  const auto match = [&](uint32_t options) {
    return pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                       PCRE2_NO_UTF_CHECK | options, data, context);
  };
  while (from < text.size()) {
    int result = match(0);
    // The interpreter keeps its stack on the heap, within the limit set.
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = match(PCRE2_NO_JIT);
    if (result == PCRE2_ERROR_NOMATCH) return false;
    if (result < 0) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the pre-tokenizer's pattern gave up on this text: ", PcreMessage(result)));
    }
    const PCRE2_SIZE* place = pcre2_get_ovector_pointer(data);
    if (place[1] > place[0]) {
      *begin = place[0];
      *end = place[1];
      return true;
    }
    from = place[0];
    if (from >= text.size()) return false;
    from += static_cast<size_t>(Utf8Length(text.substr(from, 4)));
  }
  return false;
}

}  // namespace stillhouse

#include "formats/token_decoder.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "common/status.h"
#include "formats/utf8.h"

namespace stillhouse {
namespace {

using Kind = DecoderStep::Kind;

constexpr absl::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD

std::optional<int> HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return std::nullopt;
}

std::string BytesOf(absl::string_view token) {
  return BytesFromByteLevel(token).value_or(std::string(token));
}

// A run of byte tokens is the text it spells, or one U+FFFD for each if it spells none.
void ByteFallback(std::vector<std::string>& tokens) {
  std::vector<std::string> out;
  std::string run;
  const auto end_run = [&] {
    if (run.empty()) return;
    if (FindInvalidUtf8(run) == absl::string_view::npos) {
      out.push_back(run);
    } else {
      out.insert(out.end(), run.size(), std::string(kReplacement));
    }
    run.clear();
  };
  for (std::string& token : tokens) {
    const std::optional<uint8_t> byte = FallbackByte(token);
    if (byte.has_value()) {
      run.push_back(static_cast<char>(*byte));
      continue;
    }
    end_run();
    out.push_back(std::move(token));
  }
  end_run();
  tokens = std::move(out);
}

void Strip(const DecoderStep& step, std::string& token) {
  absl::string_view rest = token;
  for (int64_t i = 0; i < step.start && absl::StartsWith(rest, step.content); ++i) {
    rest.remove_prefix(step.content.size());
  }
  for (int64_t i = 0; i < step.stop && absl::EndsWith(rest, step.content); ++i) {
    rest.remove_suffix(step.content.size());
  }
  token = std::string(rest);
}

}  // namespace

std::optional<uint8_t> FallbackByte(absl::string_view token) {
  if (token.size() != 6 || !absl::StartsWith(token, "<0x") || token[5] != '>') return std::nullopt;
  const std::optional<int> low = HexDigit(token[4]);
  // Rust's parser of numbers takes a sign.
  const std::optional<int> high = token[3] == '+' ? 0 : HexDigit(token[3]);
  if (!high.has_value() || !low.has_value()) return std::nullopt;
  return static_cast<uint8_t>(*high * 16 + *low);
}

absl::StatusOr<TokenDecoder> TokenDecoder::Create(const std::vector<DecoderStep>& steps) {
  TokenDecoder made;
  for (const DecoderStep& step : steps) {
    std::shared_ptr<const Regex> pattern;
    if (step.kind == Kind::kReplacePattern) {
      SH_ASSIGN_OR_RETURN(pattern, Regex::Compile(step.pattern));
    } else if (step.kind == Kind::kReplaceLiteral && step.pattern.empty()) {
      return absl::UnimplementedError("decoder Replace of nothing is not implemented");
    }
    made.patterns_.push_back(std::move(pattern));
    made.steps_.push_back(step);
  }
  return made;
}

bool TokenDecoder::only_bytes() const {
  return steps_.size() == 1 && steps_.front().kind == Kind::kByteLevel;
}

absl::StatusOr<std::string> TokenDecoder::Replace(size_t step, absl::string_view token) const {
  Regex::Matcher matcher(*patterns_[step]);
  std::string out;
  size_t at = 0;
  SH_RETURN_IF_ERROR(matcher.ForEach(token, [&](size_t begin, size_t end) {
    absl::StrAppend(&out, token.substr(at, begin - at), steps_[step].content);
    at = end;
  }));
  absl::StrAppend(&out, token.substr(at));
  return out;
}

absl::Status TokenDecoder::Apply(size_t i, std::vector<std::string>& tokens) const {
  const DecoderStep& step = steps_[i];
  if (step.kind == Kind::kFuse) {
    tokens = {absl::StrJoin(tokens, "")};
  } else if (step.kind == Kind::kByteFallback) {
    ByteFallback(tokens);
  } else if (step.kind == Kind::kByteLevel) {
    std::string bytes;
    for (const std::string& token : tokens) bytes += BytesOf(token);
    tokens = {CleanUtf8(bytes)};
  }
  for (size_t token = 0; token < tokens.size(); ++token) {
    if (step.kind == Kind::kStrip) {
      Strip(step, tokens[token]);
    } else if (step.kind == Kind::kReplaceLiteral) {
      absl::StrReplaceAll({{step.pattern, step.content}}, &tokens[token]);
    } else if (step.kind == Kind::kReplacePattern) {
      SH_ASSIGN_OR_RETURN(tokens[token], Replace(i, tokens[token]));
    } else if (step.kind == Kind::kMetaspace) {
      absl::StrReplaceAll({{step.pattern, token == 0 && step.prepends ? "" : " "}}, &tokens[token]);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> TokenDecoder::Decode(std::vector<std::string> tokens) const {
  for (size_t i = 0; i < steps_.size(); ++i) SH_RETURN_IF_ERROR(Apply(i, tokens));
  return absl::StrJoin(tokens, "");
}

std::string TokenDecoder::Bytes(absl::string_view token) const {
  std::string bytes(token);
  for (const DecoderStep& step : steps_) {
    if (step.kind == Kind::kByteLevel) {
      bytes = BytesOf(bytes);
    } else if (step.kind == Kind::kReplaceLiteral) {
      absl::StrReplaceAll({{step.pattern, step.content}}, &bytes);
    } else if (step.kind == Kind::kMetaspace) {
      absl::StrReplaceAll({{step.pattern, " "}}, &bytes);
    } else if (step.kind == Kind::kByteFallback && FallbackByte(bytes).has_value()) {
      return std::string(1, static_cast<char>(*FallbackByte(bytes)));
    }
  }
  return bytes;
}

}  // namespace stillhouse

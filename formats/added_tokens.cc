#include "formats/added_tokens.h"

#include <algorithm>

#include "common/status.h"
#include "common/utf8.h"

namespace stillhouse {
namespace {

bool WordEndsAt(absl::string_view text, size_t at) {
  return at > 0 && IsWordCharacter(Utf8CodePoint(text.substr(Utf8CharacterBefore(text, at), 4)));
}

bool WordBeginsAt(absl::string_view text, size_t at) {
  return at < text.size() && IsWordCharacter(Utf8CodePoint(text.substr(at, 4)));
}

size_t SpaceBegin(absl::string_view text, size_t at) {
  while (at > 0) {
    const size_t before = Utf8CharacterBefore(text, at);
    if (!IsSpaceCharacter(Utf8CodePoint(text.substr(before, 4)))) break;
    at = before;
  }
  return at;
}

size_t SpaceEnd(absl::string_view text, size_t at) {
  while (at < text.size()) {
    const absl::string_view rest = text.substr(at, 4);
    if (!IsSpaceCharacter(Utf8CodePoint(rest))) break;
    at += static_cast<size_t>(Utf8Length(rest));
  }
  return at;
}

}  // namespace

absl::Status AddedTokens::Add(const AddedToken& token, absl::string_view pattern) {
  if (pattern.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("added token ", token.id, " is empty"));
  }
  if (pattern.size() > kTokenBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("added token ", token.id, " has ",
                                                   pattern.size(), " bytes, past the limit of ",
                                                   kTokenBytesMax));
  }
  if (nodes_.empty()) nodes_.emplace_back();
  begins_[static_cast<uint8_t>(pattern.front())] = true;
  uint32_t node = 0;
  for (const char byte : pattern) {
    const auto [edge, is_new] =
        edges_.try_emplace(Edge(node, byte), static_cast<uint32_t>(nodes_.size()));
    if (is_new) nodes_.emplace_back();
    node = edge->second;
  }
  if (nodes_[node].token != nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("added tokens ", nodes_[node].token->id, " and ",
                                                   token.id, " are looked for by the same text"));
  }
  nodes_[node].token = &token;
  return absl::OkStatus();
}

const AddedToken* AddedTokens::Longest(absl::string_view text, size_t at, size_t* size) const {
  const AddedToken* longest = nullptr;
  uint32_t node = 0;
  for (size_t i = at; i < text.size(); ++i) {
    const auto edge = edges_.find(Edge(node, text[i]));
    if (edge == edges_.end()) break;
    node = edge->second;
    if (nodes_[node].token != nullptr) {
      longest = nodes_[node].token;
      *size = i + 1 - at;
    }
  }
  return longest;
}

absl::Status AddedTokens::Split(
    absl::string_view text,
    absl::FunctionRef<absl::Status(const AddedToken*, size_t begin, size_t end)> part) const {
  size_t done = 0;  // what came before has been handed out
  for (size_t at = 0; at < text.size() && !nodes_.empty();) {
    size_t size = 0;
    const AddedToken* token =
        begins_[static_cast<uint8_t>(text[at])] ? Longest(text, at, &size) : nullptr;
    if (token == nullptr) {
      ++at;
      continue;
    }
    size_t begin = at;
    at += size;
    if (token->single_word && (WordEndsAt(text, begin) || WordBeginsAt(text, at))) continue;
    size_t end = at;
    if (token->lstrip) begin = std::max(done, SpaceBegin(text, begin));
    if (token->rstrip) end = SpaceEnd(text, end);
    if (done < begin) SH_RETURN_IF_ERROR(part(nullptr, done, begin));
    SH_RETURN_IF_ERROR(part(token, begin, end));
    done = end;
  }
  if (done < text.size()) return part(nullptr, done, text.size());
  return absl::OkStatus();
}

}  // namespace stillhouse

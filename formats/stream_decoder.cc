#include <utility>

#include "absl/strings/match.h"
#include "common/status.h"
#include "formats/tokenizer.h"

namespace stillhouse {
namespace {

constexpr absl::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD: perhaps half a character

}  // namespace

absl::Status StreamDecoder::Begin(absl::Span<const int32_t> ids) {
  SH_CHECK(ids_.empty(), "after Add");
  ids_.assign(ids.begin(), ids.end());
  SH_ASSIGN_OR_RETURN(given_, tokenizer_.Decode(ids_, skip_special_));
  given_ids_ = ids_.size();
  return absl::OkStatus();
}

absl::StatusOr<std::string> StreamDecoder::Add(int32_t id) {
  if (given_.empty() && !ids_.empty()) {
    SH_ASSIGN_OR_RETURN(std::string text, tokenizer_.Decode(ids_, skip_special_));
    if (!absl::EndsWith(text, kReplacement)) {
      given_ = std::move(text);
      given_ids_ = ids_.size();
    }
  }
  ids_.push_back(id);
  SH_ASSIGN_OR_RETURN(const std::string text, tokenizer_.Decode(ids_, skip_special_));
  if (text.size() <= given_.size() || absl::EndsWith(text, kReplacement)) return std::string();
  if (!absl::StartsWith(text, given_)) {
    return absl::FailedPreconditionError(
        absl::StrCat("token id ", id, " changes the text of the ids before it"));
  }
  std::string chunk = text.substr(given_.size());
  const size_t since = ids_.size() - given_ids_;
  ids_.erase(ids_.begin(), ids_.begin() + static_cast<std::ptrdiff_t>(given_ids_));
  SH_ASSIGN_OR_RETURN(given_, tokenizer_.Decode(ids_, skip_special_));
  given_ids_ = since;
  return chunk;
}

absl::StatusOr<std::string> StreamDecoder::Finish() {
  SH_ASSIGN_OR_RETURN(const std::string text, tokenizer_.Decode(ids_, skip_special_));
  if (!absl::StartsWith(text, given_)) {
    return absl::FailedPreconditionError("the last token ids change the text of those before");
  }
  return text.substr(given_.size());
}

absl::StatusOr<std::string> StreamDecoder::GiveUp() {
  ids_.erase(ids_.begin(), ids_.begin() + static_cast<std::ptrdiff_t>(given_ids_));
  SH_ASSIGN_OR_RETURN(given_, tokenizer_.Decode(ids_, skip_special_));
  given_ids_ = ids_.size();
  return given_;
}

}  // namespace stillhouse

// ParseRequest: bytes to a protobuf message, or one clear refusal.
#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace stillhouse {

template <typename Message>
absl::StatusOr<Message> ParseRequest(absl::string_view body) {
  Message message;
  if (!message.ParseFromArray(body.data(), static_cast<int>(body.size()))) {
    return absl::InvalidArgumentError(
        absl::StrCat("not a ", message.GetTypeName(), " (", body.size(), " bytes)"));
  }
  return message;
}

}  // namespace stillhouse

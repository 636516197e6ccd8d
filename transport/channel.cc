#include "transport/channel.h"

#include "absl/strings/str_cat.h"

namespace stillhouse {

uint64_t MessageBytes(const Frames& frames) {
  uint64_t bytes = 0;
  for (const Frame& frame : frames) bytes += frame.size();
  return bytes;
}

absl::Status CheckMessageSize(const Frames& frames) {
  if (frames.empty()) return absl::InvalidArgumentError("a message needs at least one frame");
  if (frames.size() > kFramesMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a message of ", frames.size(), " frames; at most ", kFramesMax, " are allowed"));
  }
  const uint64_t bytes = MessageBytes(frames);
  if (bytes > kMessageBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("a message of ", bytes, " bytes; at most ", kMessageBytesMax, " are allowed"));
  }
  return absl::OkStatus();
}

}  // namespace stillhouse

// Digests and statuses between messages and plain values, shared by the cache's client and server.
#pragma once

#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "common/status.h"
#include "transport/rpc.h"

namespace stillhouse {

inline std::string RawDigest(const Digest& digest) { return std::string(digest.AsStringView()); }

template <typename Message>
absl::StatusOr<Message> ParseMessage(const RpcMessage& message) {
  Message parsed;
  if (!parsed.ParseFromString(message.body)) {
    return absl::InvalidArgumentError("a message of the cache could not be parsed");
  }
  return parsed;
}

template <typename Message>
RpcMessage MakeMessage(const Message& message, std::vector<Frame> attachments = {}) {
  RpcMessage out;
  message.SerializeToString(&out.body);
  out.attachments = std::move(attachments);
  return out;
}

}  // namespace stillhouse

// The envelope as a plain struct, so that .pb.h stays in one file of this folder.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "transport/channel.h"
#include "transport/rpc.h"

namespace stillhouse {

struct Envelope {
  uint32_t protocol_min = 0;
  uint32_t protocol_max = 0;
  uint64_t request_id = 0;
  std::string method;        // empty in an answer
  absl::Status status;       // of an answer
  uint64_t incarnation = 0;  // the client's, also in the answer
};

std::string SerializeEnvelope(const Envelope& envelope);
// nullopt for anything that is no envelope of ours: hostile bytes are expected here.
std::optional<Envelope> ParseEnvelope(absl::string_view bytes);

// FailedPrecondition, naming both ranges, when no protocol is spoken by both sides.
absl::Status CheckProtocol(const Envelope& theirs, const RpcOptions& ours);

// Envelope, body, attachments; and back (`frames` without the envelope).
Frames PackMessage(const Envelope& envelope, RpcMessage message);
RpcMessage UnpackMessage(Frames frames);

}  // namespace stillhouse

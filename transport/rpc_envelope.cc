#include "transport/rpc_envelope.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "proto/envelope.pb.h"

namespace stillhouse {
namespace {

constexpr size_t kStatusMessageBytesMax = 8 << 10;
constexpr uint32_t kStatusCodeMax = static_cast<uint32_t>(absl::StatusCode::kUnauthenticated);

}  // namespace

std::string SerializeEnvelope(const Envelope& envelope) {
  pb::Envelope message;
  message.set_protocol_min(envelope.protocol_min);
  message.set_protocol_max(envelope.protocol_max);
  message.set_request_id(envelope.request_id);
  message.set_method(envelope.method);
  message.set_status_code(static_cast<uint32_t>(envelope.status.code()));
  message.set_status_message(
      std::string(envelope.status.message().substr(0, kStatusMessageBytesMax)));
  message.set_sender_incarnation(envelope.incarnation);
  std::string bytes;
  SH_CHECK(message.SerializeToString(&bytes));
  return bytes;
}

std::optional<Envelope> ParseEnvelope(absl::string_view bytes) {
  if (bytes.size() > kEnvelopeBytesMax) return std::nullopt;
  pb::Envelope message;
  if (!message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) return std::nullopt;
  if (message.request_id() == 0 || message.method().size() > kMethodBytesMax ||
      message.status_code() > kStatusCodeMax || message.protocol_min() == 0 ||
      message.protocol_min() > message.protocol_max()) {
    return std::nullopt;
  }
  Envelope envelope;
  envelope.protocol_min = message.protocol_min();
  envelope.protocol_max = message.protocol_max();
  envelope.request_id = message.request_id();
  envelope.method = message.method();
  envelope.status =
      absl::Status(static_cast<absl::StatusCode>(message.status_code()), message.status_message());
  envelope.incarnation = message.sender_incarnation();
  return envelope;
}

absl::Status CheckProtocol(const Envelope& theirs, const RpcOptions& ours) {
  if (theirs.protocol_min <= ours.protocol_max && ours.protocol_min <= theirs.protocol_max) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrCat("the peer speaks protocol ", theirs.protocol_min, " to ", theirs.protocol_max,
                   ", this process ", ours.protocol_min, " to ", ours.protocol_max,
                   ": use versions of Stillhouse that are at most one protocol apart"));
}

Frames PackMessage(const Envelope& envelope, RpcMessage message) {
  Frames frames;
  frames.reserve(2 + message.attachments.size());
  frames.emplace_back(SerializeEnvelope(envelope));
  frames.emplace_back(std::move(message.body));
  for (Frame& attachment : message.attachments) frames.push_back(std::move(attachment));
  return frames;
}

RpcMessage UnpackMessage(Frames frames) {
  RpcMessage message;
  message.body = std::string(frames.front().view());
  message.attachments.assign(std::make_move_iterator(frames.begin() + 1),
                             std::make_move_iterator(frames.end()));
  return message;
}

}  // namespace stillhouse

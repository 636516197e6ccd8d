#include "storage/codec/payload.h"

#include <limits>

#include "absl/strings/str_cat.h"
#include "common/byte_io.h"

namespace stillhouse {

absl::Status MalformedPayload(absl::string_view section, absl::string_view what) {
  return absl::DataLossError(absl::StrCat("malformed payload of ", section, ": ", what));
}

absl::Status TakeCodec(absl::string_view section, CodecId codec, absl::string_view* payload) {
  if (payload->empty()) return MalformedPayload(section, "it is empty");
  const int found = static_cast<uint8_t>((*payload)[0]);
  if (found != static_cast<int>(codec)) {
    return MalformedPayload(
        section, absl::StrCat("codec ", found, " is not known to this version, which reads ",
                              static_cast<int>(codec)));
  }
  payload->remove_prefix(1);
  return absl::OkStatus();
}

std::string JoinStreams(CodecId codec, uint32_t distinct, absl::string_view symbols,
                        absl::string_view bits) {
  ByteWriter out;
  out.Put(static_cast<uint8_t>(codec));
  out.PutVarint(distinct);
  out.PutField(symbols);
  out.PutRaw(bits);
  return out.Take();
}

absl::StatusOr<CodedStreams> TakeStreams(absl::string_view section, absl::string_view payload) {
  ByteReader reader(payload);
  CodedStreams streams;
  uint64_t distinct = 0;
  reader.GetVarint(&distinct);
  reader.GetField(&streams.symbols);
  if (!reader.ok() || distinct > std::numeric_limits<uint32_t>::max()) {
    return MalformedPayload(section, "it is cut short");
  }
  streams.distinct = static_cast<uint32_t>(distinct);
  streams.bits = reader.rest();
  return streams;
}

}  // namespace stillhouse

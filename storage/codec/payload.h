// What payloads have in common.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "storage/codec.h"

namespace stillhouse {

absl::Status MalformedPayload(absl::string_view section, absl::string_view what);

// Takes the first byte. DataLoss names a codec that is not this one.
absl::Status TakeCodec(absl::string_view section, CodecId codec, absl::string_view* payload);

// A payload of lists of ids: how many ids it has, symbols of the range coder, bits beside them.
struct CodedStreams {
  uint32_t distinct = 0;
  absl::string_view symbols;
  absl::string_view bits;
};
std::string JoinStreams(CodecId codec, uint32_t distinct, absl::string_view symbols,
                        absl::string_view bits);
// Of a payload without its first byte.
absl::StatusOr<CodedStreams> TakeStreams(absl::string_view section, absl::string_view payload);

}  // namespace stillhouse

// Rotary positions in config.json, in the dialects of transformers 4 and 5.
#pragma once

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "formats/json.h"
#include "formats/model_config.h"

namespace stillhouse {

// Reads `rope_theta` with `rope_scaling` {type | rope_type, …}, and `rope_parameters`, into
// config.rope_theta and config.rope. REQUIRES: config.max_positions is read. Unimplemented, by
// name, for a kind or a key that would be computed otherwise; InvalidArgument where two say
// different things.
absl::Status ReadRope(const JsonFields& fields, absl::string_view path, ModelConfig& config);

// Adds both dialects to `root`: transformers 4 reads rope_theta and rope_scaling, 5 reads
// rope_parameters.
void WriteRope(const ModelConfig& config, Json& root);

// The factor that YaRN scales attention by when no other is given: 1 + weight·ln(factor)/10.
double YarnMagnitude(double factor, double weight);

}  // namespace stillhouse

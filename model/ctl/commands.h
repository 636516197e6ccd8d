// The sub-commands of modelctl. Each writes its result to standard output or to the file named, and
// returns one line of error.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/generate.h"

namespace stillhouse {

struct InspectFlags {
  std::string model;
  std::string output = "table";  // or json
  bool tensors = false;          // list each
};
absl::Status Inspect(const InspectFlags& flags);

struct DiffFlags {
  std::string a, b;
  std::string output = "table";  // or json
  double tolerance = 0;          // values that differ by no more count as the same
};
// The exit code: kExitOk for the same model, kExitConflict for another.
absl::StatusOr<int> Diff(const DiffFlags& flags);

struct TokenizeFlags {
  std::string model;
  bool offsets = false;  // also "offsets": [[begin, end], …], the bytes that each id came from
  bool special = false;  // with what the post-processor adds, which comes from nowhere: [0, 0]
};
// Standard input: {"text": …} a line. Standard output: {"ids": […]} a line, in order.
absl::Status Tokenize(const TokenizeFlags& flags);

struct DetokenizeFlags {
  std::string model;
  bool skip_special = false;
};
// The reverse: {"ids": […]} a line, {"text": …} a line.
absl::Status Detokenize(const DetokenizeFlags& flags);

struct LogitsFlags {
  std::string model;
  std::string ids;  // a file of {"ids": […]} lines; "-" for standard input
  std::string out;  // a safetensors file that must not exist yet
  std::string dtype = "fp32";
};
absl::Status Logits(const LogitsFlags& flags);

struct GenerateFlags {
  std::string model;
  std::string prompt;
  int64_t max_tokens = 64;
  std::vector<std::string> stops;  // texts of one token each, beside the model's own ends
  SamplingOptions sampling;
  uint64_t seed = 0;
  std::string dtype = "bf16";
};
absl::Status Generate(const GenerateFlags& flags);

struct ConvertFlags {
  std::string model;
  std::string out;  // a folder or, NAME.gguf, a file that must not exist yet
  std::string dtype = "fp32";
  uint64_t shard_bytes_max = 5'000'000'000;  // of a Hugging Face folder
};
absl::Status Convert(const ConvertFlags& flags);

}  // namespace stillhouse

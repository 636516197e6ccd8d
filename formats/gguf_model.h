// A model in a GGUF file: its config and its weights by their Hugging Face names.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "formats/gguf.h"
#include "formats/model_config.h"
#include "formats/weights.h"

namespace stillhouse {

// A tensor that is no parameter: what each rotary frequency is divided by.
inline constexpr char kRopeDivisors[] = "rope_freqs.weight";

// InvalidArgument or Unimplemented, naming the key, for what is missing or what we lack.
absl::StatusOr<ModelConfig> GgufModelConfig(const GgufFile& file);

// Every parameter of `config` with its shape, and nothing else; the first that differs is named.
absl::StatusOr<std::shared_ptr<const Weights>> GgufModelWeights(
    std::shared_ptr<const GgufFile> file, const ModelConfig& config);

}  // namespace stillhouse

// A model in a GGUF file: its config and its weights by their Hugging Face names.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "formats/gguf.h"
#include "formats/model_config.h"
#include "formats/weights.h"

namespace stillhouse {

// A tensor that is no parameter: what each rotary frequency is divided by.
inline constexpr char kRopeDivisors[] = "rope_freqs.weight";

// InvalidArgument or Unimplemented, naming the key, for what is missing or what we lack.
absl::StatusOr<ModelConfig> GgufModelConfig(const GgufFile& file);

// "model.layers.3.mlp.up_proj.weight" -> "blk.3.ffn_up.weight". REQUIRES: a parameter of a
// ModelConfig.
std::string GgufTensorName(absl::string_view parameter);

// By what llama.cpp divides each frequency of a head, head_dim / 2 numbers. REQUIRES: rope is
// Llama 3's.
std::vector<float> RopeDivisors(const RopeScaling& rope, const ModelConfig& config);

// Every parameter of `config` with its shape, and nothing else; the first that differs is named.
absl::StatusOr<std::shared_ptr<const Weights>> GgufModelWeights(
    std::shared_ptr<const GgufFile> file, const ModelConfig& config);

}  // namespace stillhouse

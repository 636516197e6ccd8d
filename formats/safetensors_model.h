// The weights of a Hugging Face folder: model.safetensors, or the files that an index names.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "formats/model_config.h"
#include "formats/weights.h"

namespace stillhouse {

inline constexpr char kSafetensorsSingleFile[] = "model.safetensors";
inline constexpr char kSafetensorsIndexFile[] = "model.safetensors.index.json";

// Every parameter of `config` with its shape in a dtype of numbers, each once, in the file where
// the index puts it; the first that is not is named. NotFound for a file that is not there.
absl::StatusOr<std::shared_ptr<const Weights>> OpenFolderWeights(const std::string& folder,
                                                                 const ModelConfig& config);

}  // namespace stillhouse

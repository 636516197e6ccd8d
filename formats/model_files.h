// Opening a model from disk (a GGUF file, a split GGUF by one of its parts or its folder, or a
// Hugging Face folder), and writing one.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/digest.h"
#include "formats/model_config.h"
#include "formats/tokenizer.h"
#include "formats/weights.h"

namespace stillhouse {

struct ModelFiles {
  std::string path;
  std::string format;  // "gguf" or "huggingface"
  ModelConfig config;
  std::shared_ptr<const Weights> weights;
  std::shared_ptr<const Tokenizer> tokenizer;
};

// NotFound with how to get it when `path` does not exist and looks like a hub id ("org/name");
// every tensor of config.Parameters() is present with its shape, or the error names the first that
// is not.
absl::StatusOr<ModelFiles> OpenModelFiles(const std::string& path);
// Only the tokenizer: a GGUF, a Hugging Face folder, or a folder with only tokenizer.json.
absl::StatusOr<std::shared_ptr<const Tokenizer>> OpenTokenizer(const std::string& path);

// SHA-256 tree over the canonical architecture and every tensor's name, dtype, shape and stored
// bytes. Remembered in `memo_folder` ("" for none) by path, size, time of change and inode.
absl::StatusOr<Digest> TeacherFingerprint(const ModelFiles& model, const std::string& memo_folder);
// The memo folder of this user: $XDG_CACHE_HOME/stillhouse or ~/.cache/stillhouse.
std::string UserCacheFolder();

// One tensor to write. `read` is called once, when its turn comes, and fills `count` values as
// fp32.
struct TensorToWrite {
  std::string name;
  std::vector<int64_t> shape;
  std::string dtype;  // "F32", "BF16" or "F16"
  std::function<absl::Status(absl::Span<float>)> read;
};
// Writes config.json, generation_config.json, model.safetensors (metadata format: pt) and the
// tokenizer's files into a new folder beside `folder`, then renames it there: `folder` appears
// whole or not at all. AlreadyExists if it is there.
absl::Status WriteHuggingFaceFolder(const std::string& folder, const ModelConfig& config,
                                    const Tokenizer& tokenizer,
                                    const std::vector<TensorToWrite>& tensors);

}  // namespace stillhouse

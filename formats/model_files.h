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

// One tensor to write, by one of two calls, made when its turn comes.
struct TensorToWrite {
  std::string name;
  std::vector<int64_t> shape;
  std::string dtype;  // "F32", "BF16" or "F16"
  // Once: fills all values, as fp32.
  std::function<absl::Status(absl::Span<float>)> read;
  // Instead, where it is set: fills whole rows from `first` on, already in `dtype`; in rising
  // order, some megabytes at a time.
  std::function<absl::Status(int64_t first, absl::Span<char>)> read_rows;
};
// Every tensor of `weights` in `dtype`, "" for the one that each is stored in: bit by bit where the
// two are the same. Unimplemented for a stored dtype that safetensors files do not have. `weights`
// stays open as long as the list is there.
absl::StatusOr<std::vector<TensorToWrite>> TensorsToWrite(std::shared_ptr<const Weights> weights,
                                                          const std::string& dtype);

struct WriteFolderOptions {
  // Of the data of one file, but for a larger tensor, which gets a file of its own; as
  // transformers' max_shard_size.
  uint64_t shard_bytes_max = 5'000'000'000;
};
// Writes config.json, generation_config.json, model.safetensors (metadata format: pt) and the
// tokenizer's files into a new folder beside `folder`, then renames it there: `folder` appears
// whole or not at all. More data than one file may have become model-00001-of-0000N.safetensors and
// model.safetensors.index.json. AlreadyExists if the folder is there.
absl::Status WriteHuggingFaceFolder(const std::string& folder, const ModelConfig& config,
                                    const Tokenizer& tokenizer,
                                    const std::vector<TensorToWrite>& tensors,
                                    const WriteFolderOptions& options = {});

// Writes one GGUF file (version 3) as llama.cpp's converter does, matrices as `dtype` ("F32",
// "F16", "BF16", "Q8_0", "" for what each is stored in), norms and biases as F32; under another
// name until it is whole. Mistral becomes "llama". Unimplemented, naming it, for what a GGUF does
// not hold (sliding windows, some kinds of RoPE, some tokenizers): the header is read back and
// compared before the data are written. AlreadyExists if `path` is there.
absl::Status WriteGguf(const std::string& path, const ModelFiles& model, const std::string& dtype);

}  // namespace stillhouse

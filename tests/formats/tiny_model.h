// A small random model on disk, for every test that needs one: a Hugging Face folder with a
// real byte-level BPE tokenizer, and the same model as a GGUF file.
//
// Everything is a pure function of the options, on every machine.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "formats/model_config.h"

namespace stillhouse {

struct TinyModelOptions {
  int64_t layers = 2;
  int64_t hidden = 64;
  int64_t intermediate = 128;
  int64_t heads = 4;
  int64_t kv_heads = 2;
  int64_t vocab_size = 320;  // at least kTinyTokens; the rest are padding rows
  int64_t max_positions = 512;
  bool tie_embeddings = true;
  std::string dtype = "float32";  // of the Hugging Face folder: float32, bfloat16 or float16
  uint64_t seed = 1;
  // What the architecture leaves open; its biases and norms follow from it.
  std::string architecture = "llama";  // or qwen2, qwen3, mistral
  bool attention_bias = false;         // llama, qwen3
  bool mlp_bias = false;               // llama
  int64_t head_dim = 0;                // 0: hidden / heads
  int64_t sliding_window = 0;
  RopeScaling rope;
};

// The tokenizer of every tiny model: 256 bytes, 40 merges, then <|endoftext|> (bos and eos) and
// <|im_start|>.
inline constexpr int32_t kTinyTokens = 298;
inline constexpr int32_t kTinyEos = 296;

ModelConfig TinyConfig(const TinyModelOptions& options);
// The values of one of TinyConfig(options).Parameters(), before rounding to a dtype: normal, of
// standard deviation 1/sqrt(inputs) for matrices and 0.1 around 1 for norms.
std::vector<float> TinyWeights(const TinyModelOptions& options,
                               const ModelConfig::Parameter& parameter);
// tokenizer.json's text.
std::string TinyTokenizerJson();

// config.json, model.safetensors, tokenizer.json and tokenizer_config.json in `folder`, which is
// made.
absl::Status WriteTinyModel(const std::string& folder, const TinyModelOptions& options = {});
// The same model as one GGUF v3 file with matrices of type "F32", "F16", "BF16", "Q8_0" or "Q4_1"
// (norms are F32), q and k permuted as llama.cpp does. REQUIRES: hidden and intermediate are
// multiples of 32 for the quantised types.
absl::Status WriteTinyGguf(const std::string& path, const TinyModelOptions& options = {},
                           const std::string& type = "F32");
// One file of the same model, matrices as F16, split into several; tensor i lies in part i % count.
struct TinyPart {
  int64_t number = 0;  // from 0
  int64_t count = 3;
  int64_t tensors_error = 0;          // added to the number of tensors that it says there are
  std::optional<int64_t> tensors_of;  // holds the tensors of another part
};
std::string TinyGgufPart(const TinyModelOptions& options, const TinyPart& part);

}  // namespace stillhouse

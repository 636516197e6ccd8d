// ModelConfig: the architecture of a decoder-only language model, however its file spelt it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace stillhouse {

struct ModelConfig {
  std::string architecture = "llama";  // Hugging Face's model_type
  int64_t vocab_size = 0;              // rows of the embedding, padding rows included
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t max_positions = 0;
  double rope_theta = 10000.0;
  double rms_norm_eps = 1e-5;
  bool tie_embeddings = false;
  std::string dtype = "float32";  // of the stored weights: float32, bfloat16, float16
  std::optional<int64_t> bos_id;
  std::optional<int64_t> eos_id;
  std::optional<int64_t> pad_id;

  friend bool operator==(const ModelConfig&, const ModelConfig&) = default;

  int64_t ParameterCount() const;  // a tied matrix counted once
  // InvalidArgument, naming the field, for sizes that are zero, negative, absurd or do not divide.
  absl::Status Validate() const;
  // The parameters in Hugging Face's names and order, with shapes: what a checkpoint must hold.
  struct Parameter {
    std::string name;
    std::vector<int64_t> shape;
  };
  std::vector<Parameter> Parameters() const;
};

// Reads config.json as transformers 4 and 5 write it. `path` is for messages. Unimplemented for an
// architecture or RoPE kind we lack, by name.
absl::StatusOr<ModelConfig> ParseConfigJson(absl::string_view json, absl::string_view path);
// A config.json that transformers 4 and 5 both open.
std::string ConfigToJson(const ModelConfig& config);

}  // namespace stillhouse

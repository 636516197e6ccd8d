// ModelConfig: the architecture of a decoder-only language model, however its file spelt it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace stillhouse {

// How rotary frequencies are stretched past the positions a model was first trained on, as
// `transformers` names and computes it. Fields that a kind does not use keep their defaults, so two
// files that mean the same compare equal.
struct RopeScaling {
  enum class Kind { kDefault, kLinear, kDynamic, kYarn, kLlama3 };
  Kind kind = Kind::kDefault;
  double factor = 1;               // of the length; all kinds but the default
  int64_t original_positions = 0;  // yarn, llama3: the length of the first training
  double attention_factor = 1;     // yarn: multiplies cosines and sines
  double beta_fast = 32;           // yarn: turns above which a frequency is kept
  double beta_slow = 1;            // yarn: turns below which it is divided by the factor
  bool truncate = true;         // yarn: the ramp between them begins and ends at whole dimensions
  double low_freq_factor = 1;   // llama3: as beta_slow
  double high_freq_factor = 4;  // llama3: as beta_fast

  friend bool operator==(const RopeScaling&, const RopeScaling&) = default;
};
// "default", "linear", "dynamic", "yarn" or "llama3".
absl::string_view RopeKindName(RopeScaling::Kind kind);

inline constexpr size_t kEndIdsMax = 256;  // ids that end a text; real models have up to three

struct ModelConfig {
  std::string architecture = "llama";  // Hugging Face's model_type: llama, qwen2, qwen3, mistral
  int64_t vocab_size = 0;              // rows of the embedding, padding rows included
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t max_positions = 0;
  double rope_theta = 10000.0;
  RopeScaling rope;
  double rms_norm_eps = 1e-5;
  bool qkv_bias = false;     // of the q, k and v projections
  bool output_bias = false;  // of attention's output projection
  bool mlp_bias = false;     // of gate, up and down
  bool qk_norm = false;      // an RMSNorm over each head of q and of k, before the rotation
  // Tokens that a sliding layer sees, the token itself included; 0: no layer slides.
  int64_t sliding_window = 0;
  std::vector<bool> sliding_layers;  // which slide, where some do and some do not; else empty
  bool tie_embeddings = false;
  std::string dtype = "float32";  // of the stored weights: float32, bfloat16, float16
  std::optional<int64_t> bos_id;
  std::optional<int64_t> eos_id;
  std::vector<int64_t> more_eos_ids;  // other ids that end a text, beside eos_id
  std::optional<int64_t> pad_id;

  friend bool operator==(const ModelConfig&, const ModelConfig&) = default;

  int64_t ParameterCount() const;  // a tied matrix counted once
  // Tokens of the longest text: max_positions, or what the RoPE scaling stretches them to.
  int64_t TokensMax() const;
  // The window of one layer, 0 where it sees all. REQUIRES: layer < layers.
  int64_t WindowOf(int64_t layer) const;
  // The same with the layers `kept` alone. REQUIRES: they ascend and are below `layers`.
  ModelConfig WithLayers(absl::Span<const int64_t> kept) const;
  // Which layers slide: sets both fields, in the one form that each choice has.
  // REQUIRES: window >= 0, slides.size() == layers.
  void SetWindow(int64_t window, std::vector<bool> slides);
  // InvalidArgument, naming the field, for sizes that are zero, negative, absurd or do not divide;
  // Unimplemented for what the architecture of that name does not have.
  absl::Status Validate() const;
  // The parameters in Hugging Face's names and order, with shapes: what a checkpoint must hold.
  struct Parameter {
    std::string name;
    std::vector<int64_t> shape;
    bool IsBias() const;  // else a matrix, or a norm's weight where it has one dimension
  };
  std::vector<Parameter> Parameters() const;
};

// Reads config.json as transformers 4 and 5 write it. `path` is for messages. Unimplemented for an
// architecture or RoPE kind we lack, by name.
absl::StatusOr<ModelConfig> ParseConfigJson(absl::string_view json, absl::string_view path);
// A config.json that transformers 4 and 5 both open.
std::string ConfigToJson(const ModelConfig& config);

}  // namespace stillhouse

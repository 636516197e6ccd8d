// Decoder: the forward pass of Llama, Qwen2, Qwen3 and Mistral on ATen, with or without autograd.
//
// Owner: weights are plain tensors; whoever made them owns them (a student binds views of its flat
// buffers). Threads: a forward pass reads the weights only, so several may run at once; inside,
// ATen uses its own threads. Determinism: the same weights, batch shape, dtype, thread count and
// library give the same bits; a document's bits also depend on the shape of the batch it lies in.
//
// Architecture: pre-norm decoder with RMSNorm (Zhang and Sennrich 2019), rotary positions (Su et
// al. 2021, the half-split layout of Hugging Face; rotary.h has its kinds), grouped-query attention
// (Ainslie et al. 2023) and SwiGLU (Shazeer 2020); where the config says so, biases, an RMSNorm
// over each head of q and k (Henry et al. 2020) and sliding windows (Beltagy et al. 2020). Rounding
// follows `transformers`: norms and rotary angles in fp32, then cast.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ATen/core/Tensor.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "formats/load_tensors.h"
#include "formats/model_config.h"
#include "formats/model_files.h"

namespace stillhouse {

struct NamedTensor {
  std::string name;  // Hugging Face's: "model.layers.0.self_attn.q_proj.weight"
  at::Tensor tensor;
};

// H hidden size, I intermediate size, Q heads, K key/value heads, D head size, V vocabulary.
struct LayerWeights {
  at::Tensor input_norm;      // [H]
  at::Tensor q, k, v;         // [Q·D, H], [K·D, H], [K·D, H]
  at::Tensor o;               // [H, Q·D]
  at::Tensor attention_norm;  // [H], the norm after attention
  at::Tensor gate, up;        // [I, H]
  at::Tensor down;            // [H, I]
  // Undefined where the config has none.
  at::Tensor q_bias, k_bias, v_bias;  // [Q·D], [K·D], [K·D]
  at::Tensor o_bias;                  // [H]
  at::Tensor gate_bias, up_bias;      // [I]
  at::Tensor down_bias;               // [H]
  at::Tensor q_norm, k_norm;          // [D]
};

struct DecoderWeights {
  ModelConfig config;
  at::Tensor embedding;  // [V, H]
  std::vector<LayerWeights> layers;
  at::Tensor final_norm;  // [H]
  at::Tensor head;        // [V, H]; the same tensor as `embedding` where they are tied

  // In the order of config.Parameters(); a tied matrix once. The tensors are shared, not copied.
  std::vector<NamedTensor> Named() const;
};

// Weights whose tensors are what `tensor_of` returns for each of config.Parameters(). All must have
// one floating dtype and the shapes stated: InvalidArgument, naming the first that does not.
absl::StatusOr<DecoderWeights> BindDecoder(
    const ModelConfig& config,
    absl::FunctionRef<absl::StatusOr<at::Tensor>(const ModelConfig::Parameter&)> tensor_of);

// Reads every tensor as `dtype` (at::kFloat or at::kBFloat16), rounded where it is stored as
// another: LoadTensors.
absl::StatusOr<DecoderWeights> LoadDecoder(const ModelFiles& files, at::ScalarType dtype,
                                           const LoadProgressCall& progress = nullptr);

// The layers of `weights` that `kept` lists, ascending, as a shallower model that shares its
// tensors.
absl::StatusOr<DecoderWeights> KeepLayers(const DecoderWeights& weights,
                                          const std::vector<int64_t>& kept);

// Documents end to end, without padding between them. Attention is causal within each document and
// positions start at 0 in each. Neighbours of equal length share one attention call, so a padded
// batch of B rows of length L is B documents of length L.
struct DecoderBatch {
  at::Tensor ids;                // [T] int64, each in [0, V)
  std::vector<int64_t> lengths;  // each >= 1; they sum to T
  // Of each document as the text that it is, by which dynamic RoPE turns it: less than its length
  // where it ends with padding, more where tokens at its end are left out. Empty: as `lengths`.
  std::vector<int64_t> whole_lengths = {};
};

// Called after each layer with its index and the residual stream before and after it, both [T, H].
using LayerHook =
    absl::FunctionRef<void(int64_t layer, const at::Tensor& input, const at::Tensor& output)>;

// The states after the final norm, [T, H] in the weights' dtype. Records a graph for autograd
// unless the caller holds an c10::NoGradGuard or no weight requires a gradient. InvalidArgument for
// a batch that is not as stated; Internal with LibTorch's first line for what it throws.
absl::StatusOr<at::Tensor> ForwardHidden(const DecoderWeights& weights, const DecoderBatch& batch);
absl::StatusOr<at::Tensor> ForwardHidden(const DecoderWeights& weights, const DecoderBatch& batch,
                                         LayerHook hook);

// [V, H]: logits are hidden · HeadWeightᵀ. Rows at or above the tokenizer's size are padding.
inline const at::Tensor& HeadWeight(const DecoderWeights& weights) { return weights.head; }

}  // namespace stillhouse

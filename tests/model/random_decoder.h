// Small decoders with random weights, a pure function of the seed.
#pragma once

#include <cmath>

#include "ATen/core/Tensor.h"
#include "ATen/ops/empty.h"
#include "common/random.h"
#include "common/status.h"
#include "model/decoder.h"

namespace stillhouse::testing {

inline ModelConfig SmallConfig() {
  ModelConfig config;
  config.vocab_size = 97;
  config.hidden_size = 48;
  config.intermediate_size = 80;
  config.layers = 2;
  config.heads = 6;
  config.kv_heads = 2;
  config.head_dim = 8;
  config.max_positions = 64;
  config.tie_embeddings = true;
  return config;
}

// Matrices with entries of about 1/sqrt(columns), so that states keep their size; norms about 1.
inline DecoderWeights RandomDecoder(const ModelConfig& config, at::ScalarType dtype,
                                    uint64_t seed) {
  uint64_t stream = 0;
  auto weights = BindDecoder(
      config, [&](const ModelConfig::Parameter& parameter) -> absl::StatusOr<at::Tensor> {
        RandomStream random(seed, stream++);
        at::Tensor tensor = at::empty(parameter.shape, at::TensorOptions().dtype(at::kFloat));
        const bool vector = parameter.shape.size() == 1;
        const double scale =
            vector ? 0.1 : 1.0 / std::sqrt(static_cast<double>(parameter.shape.back()));
        float* values = tensor.mutable_data_ptr<float>();
        for (int64_t i = 0; i < tensor.numel(); ++i) {
          values[i] = static_cast<float>((vector ? 1.0 : 0.0) + scale * random.NextNormal());
        }
        return tensor.to(dtype);
      });
  SH_CHECK_OK(weights.status());
  return *std::move(weights);
}

inline DecoderBatch RandomBatch(const ModelConfig& config, std::vector<int64_t> lengths,
                                uint64_t seed) {
  int64_t tokens = 0;
  for (const int64_t length : lengths) tokens += length;
  DecoderBatch batch{at::empty({tokens}, at::TensorOptions().dtype(at::kLong)), std::move(lengths)};
  RandomStream random(seed);
  for (int64_t t = 0; t < tokens; ++t) {
    batch.ids.mutable_data_ptr<int64_t>()[t] =
        static_cast<int64_t>(random.NextBelow(static_cast<uint64_t>(config.vocab_size)));
  }
  return batch;
}

}  // namespace stillhouse::testing

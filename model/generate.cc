#include "model/generate.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "ATen/ops/arange.h"
#include "ATen/ops/embedding.h"
#include "ATen/ops/empty.h"
#include "absl/strings/str_cat.h"
#include "c10/core/GradMode.h"
#include "common/status.h"
#include "model/decoder_layer.h"
#include "model/matmul.h"
#include "model/torch_status.h"

namespace stillhouse {

absl::Status ValidateSampling(const SamplingOptions& options) {
  if (!(options.temperature >= 0) || !std::isfinite(options.temperature)) {
    return absl::InvalidArgumentError("the temperature must be 0 (greedy) or more");
  }
  if (options.top_k < 0) return absl::InvalidArgumentError("top-k must be 0 (all) or more");
  if (!(options.top_p > 0 && options.top_p <= 1)) {
    return absl::InvalidArgumentError("top-p must be above 0 and at most 1");
  }
  return absl::OkStatus();
}

absl::StatusOr<int32_t> PickToken(absl::Span<const float> logits, const SamplingOptions& options,
                                  RandomStream& random) {
  for (size_t id = 0; id < logits.size(); ++id) {
    if (std::isnan(logits[id]) || logits[id] == INFINITY) {
      return absl::InvalidArgumentError(absl::StrCat("the logit of id ", id, " is not finite"));
    }
  }
  const auto top = std::max_element(logits.begin(), logits.end());
  if (options.temperature == 0) return static_cast<int32_t>(top - logits.begin());
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const size_t kept =
      options.top_k > 0 ? std::min(ids.size(), static_cast<size_t>(options.top_k)) : ids.size();
  std::partial_sort(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(kept), ids.end(),
                    [&](int32_t a, int32_t b) {
                      const float x = logits[static_cast<size_t>(a)];
                      const float y = logits[static_cast<size_t>(b)];
                      return x != y ? x > y : a < b;
                    });
  ids.resize(kept);
  std::vector<double> mass;
  double total = 0;
  for (const int32_t id : ids) {
    mass.push_back(std::exp((static_cast<double>(logits[static_cast<size_t>(id)]) - *top) /
                            options.temperature));
    total += mass.back();
  }
  double nucleus = 0;
  size_t count = 0;
  while (count < mass.size() && (count == 0 || nucleus < options.top_p * total)) {
    nucleus += mass[count++];
  }
  double left = random.NextUniform() * nucleus;
  for (size_t i = 0; i + 1 < count; ++i) {
    left -= mass[i];
    if (left < 0) return ids[i];
  }
  return ids[count - 1];
}

absl::StatusOr<Decoding> Decoding::Create(const DecoderWeights& weights, int64_t tokens_max) {
  const ModelConfig& config = weights.config;
  if (tokens_max < 1 || tokens_max > config.max_positions) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a text of ", tokens_max, " tokens; this model takes 1 to ", config.max_positions));
  }
  Decoding decoding(weights);
  decoding.tokens_max_ = tokens_max;
  SH_RETURN_IF_ERROR(CallTorch([&] {
    const auto options = weights.embedding.options().requires_grad(false);
    decoding.table_ = ops::MakeRotaryTable(config.rope_theta, config.head_dim, tokens_max,
                                           weights.embedding.scalar_type());
    for (size_t i = 0; i < weights.layers.size(); ++i) {
      for (std::vector<at::Tensor>* cache : {&decoding.keys_, &decoding.values_}) {
        cache->push_back(at::empty({tokens_max, config.kv_heads, config.head_dim}, options));
      }
    }
  }));
  return decoding;
}

absl::StatusOr<std::vector<float>> Decoding::Extend(absl::Span<const int32_t> ids) {
  if (ids.empty()) return absl::InvalidArgumentError("no token to continue from");
  if (static_cast<int64_t>(ids.size()) > tokens_max_ - tokens_) {
    return absl::OutOfRangeError(absl::StrCat("no room for ", ids.size(), " more tokens after ",
                                              tokens_, " of ", tokens_max_));
  }
  for (const int32_t id : ids) {
    if (id < 0 || id >= weights_->config.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("token id ", id, " is not below the ",
                                                     "vocabulary's ", weights_->config.vocab_size));
    }
  }
  std::vector<float> logits(static_cast<size_t>(weights_->config.vocab_size));
  SH_RETURN_IF_ERROR(CallTorch([&] {
    const c10::NoGradGuard no_grad;
    at::Tensor state;
    if (tokens_ == 0) {
      state = Append(ids);
    } else {
      // One at a time: a single query sees all that is kept, so no mask is needed.
      for (const int32_t id : ids) state = Append({&id, 1});
    }
    const at::Tensor row = ops::Linear(state, weights_->head).to(at::kFloat).contiguous();
    std::copy_n(row.const_data_ptr<float>(), logits.size(), logits.begin());
  }));
  return logits;
}

at::Tensor Decoding::Append(absl::Span<const int32_t> ids) {
  const ModelConfig& config = weights_->config;
  const int64_t count = static_cast<int64_t>(ids.size());
  const at::Tensor tokens = at::empty({count}, at::TensorOptions().dtype(at::kLong));
  std::copy(ids.begin(), ids.end(), tokens.mutable_data_ptr<int64_t>());
  const at::Tensor position =
      at::arange(tokens_, tokens_ + count, at::TensorOptions().dtype(at::kInt));
  at::Tensor x = at::embedding(weights_->embedding, tokens);
  for (size_t i = 0; i < weights_->layers.size(); ++i) {
    x = RunLayer(weights_->layers[i], config, table_, position, x,
                 [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
                   keys_[i].narrow(0, tokens_, count).copy_(k);
                   values_[i].narrow(0, tokens_, count).copy_(v);
                   if (tokens_ == 0) return AttendDocuments(q, k, v, /*documents=*/1);
                   return AttendAll(q, keys_[i].narrow(0, 0, tokens_ + count),
                                    values_[i].narrow(0, 0, tokens_ + count));
                 });
  }
  tokens_ += count;
  return ops::RmsNorm(x.narrow(0, count - 1, 1), weights_->final_norm, config.rms_norm_eps);
}

}  // namespace stillhouse

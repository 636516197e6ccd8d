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
#include "model/rotary.h"
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
  if (tokens_max < 1 || tokens_max > config.TokensMax()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a text of ", tokens_max, " tokens; this model takes 1 to ", config.TokensMax()));
  }
  Decoding decoding(weights);
  decoding.tokens_max_ = tokens_max;
  SH_RETURN_IF_ERROR(CallTorch([&] {
    const auto options = weights.embedding.options().requires_grad(false);
    // Of all texts whose angles do not depend on their length.
    const int64_t fixed =
        AnglesDependOnLength(config, tokens_max) ? config.max_positions : tokens_max;
    decoding.table_ = MakeRotaryTable(config, fixed, fixed, weights.embedding.scalar_type());
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
  if (static_cast<int64_t>(ids.size()) > tokens_max_ - tokens()) {
    return absl::OutOfRangeError(absl::StrCat("no room for ", ids.size(), " more tokens after ",
                                              tokens(), " of ", tokens_max_));
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
    ids_.insert(ids_.end(), ids.begin(), ids.end());
    at::Tensor state;
    if (AnglesDependOnLength(weights_->config, tokens())) {
      table_ =
          MakeRotaryTable(weights_->config, tokens(), tokens(), weights_->embedding.scalar_type());
      kept_ = 0;
    }
    if (kept_ == 0) {
      state = Append(ids_);
    } else {
      // One at a time: a single query sees all that is kept, so no mask is needed.
      for (const int32_t id : ids) state = Append({&id, 1});
    }
    const at::Tensor row = ops::Linear(state, weights_->head).to(at::kFloat).contiguous();
    std::copy_n(row.const_data_ptr<float>(), logits.size(), logits.begin());
  }));
  return logits;
}

at::Tensor Decoding::Attend(size_t layer, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v) {
  const int64_t count = q.size(0);
  const int64_t window = weights_->config.WindowOf(static_cast<int64_t>(layer));
  keys_[layer].narrow(0, kept_, count).copy_(k);
  values_[layer].narrow(0, kept_, count).copy_(v);
  if (kept_ == 0) return AttendDocuments(q, k, v, /*documents=*/1, window);
  SH_CHECK(count == 1);
  const int64_t seen = window == 0 ? kept_ + 1 : std::min(window, kept_ + 1);
  const int64_t first = kept_ + 1 - seen;
  return AttendAll(q, keys_[layer].narrow(0, first, seen), values_[layer].narrow(0, first, seen));
}

at::Tensor Decoding::Append(absl::Span<const int32_t> ids) {
  const ModelConfig& config = weights_->config;
  const int64_t count = static_cast<int64_t>(ids.size());
  const at::Tensor tokens = at::empty({count}, at::TensorOptions().dtype(at::kLong));
  std::copy(ids.begin(), ids.end(), tokens.mutable_data_ptr<int64_t>());
  const at::Tensor position = at::arange(kept_, kept_ + count, at::TensorOptions().dtype(at::kInt));
  at::Tensor x = at::embedding(weights_->embedding, tokens);
  for (size_t i = 0; i < weights_->layers.size(); ++i) {
    x = RunLayer(weights_->layers[i], config, table_, position, x,
                 [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
                   return Attend(i, q, k, v);
                 });
  }
  kept_ += count;
  return ops::RmsNorm(x.narrow(0, count - 1, 1), weights_->final_norm, config.rms_norm_eps);
}

absl::StatusOr<std::vector<int32_t>> GenerateTokens(const DecoderWeights& weights,
                                                    absl::Span<const int32_t> prompt,
                                                    const GenerateOptions& options) {
  SH_CHECK(options.vocabulary >= 1 && options.vocabulary <= weights.config.vocab_size);
  SH_RETURN_IF_ERROR(ValidateSampling(options.sampling));
  if (prompt.empty()) return absl::InvalidArgumentError("the prompt is empty");
  SH_ASSIGN_OR_RETURN_AT(
      Decoding decoding,
      Decoding::Create(weights, static_cast<int64_t>(prompt.size()) + options.tokens_max),
      "prompt and generated tokens together");
  RandomStream random(options.seed);
  std::vector<int32_t> generated;
  const auto& stops = options.stop_ids;
  while (static_cast<int64_t>(generated.size()) < options.tokens_max) {
    const absl::Span<const int32_t> next =
        generated.empty() ? prompt : absl::MakeConstSpan(generated).last(1);
    SH_ASSIGN_OR_RETURN(const std::vector<float> logits, decoding.Extend(next));
    SH_ASSIGN_OR_RETURN(
        const int32_t id,
        PickToken(absl::MakeConstSpan(logits).first(static_cast<size_t>(options.vocabulary)),
                  options.sampling, random));
    if (std::find(stops.begin(), stops.end(), id) != stops.end()) break;
    generated.push_back(id);
    if (options.on_token != nullptr) SH_RETURN_IF_ERROR(options.on_token(id));
  }
  return generated;
}

}  // namespace stillhouse

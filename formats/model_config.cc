#include "formats/model_config.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/match.h"
#include "common/status.h"

namespace stillhouse {
namespace {

// Ten times and more what exists: past them a size is a mistake or an attack, and products of any
// three still fit int64.
constexpr int64_t kVocabularyMax = 1 << 22;
constexpr int64_t kWidthMax = 1 << 19;  // hidden and intermediate
constexpr int64_t kLayersMax = 1 << 11;
constexpr int64_t kHeadsMax = 1 << 13;
constexpr int64_t kHeadDimMax = 1 << 13;
constexpr int64_t kPositionsMax = 1 << 30;
constexpr int64_t kParametersMax = int64_t{1} << 39;  // a terabyte of bfloat16
constexpr double kScaleMax = 1e6;                     // of any number that scales RoPE

absl::Status CheckRange(absl::string_view field, int64_t value, int64_t max) {
  if (value >= 1 && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", value, "; it must be from 1 to ", max));
}

absl::Status CheckTokenId(absl::string_view field, const std::optional<int64_t>& id,
                          int64_t vocab_size) {
  if (!id.has_value() || (*id >= 0 && *id < vocab_size)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", *id, ", outside the vocabulary of ", vocab_size));
}

absl::Status CheckScale(absl::string_view field, double value, double min) {
  if (value >= min && value > 0 && value <= kScaleMax) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("RoPE's ", field, " is ", value, "; it must be from ", min, " to ", kScaleMax));
}

absl::Status CheckRope(const ModelConfig& config) {
  using Kind = RopeScaling::Kind;
  const RopeScaling& rope = config.rope;
  if (!std::isfinite(config.rope_theta) || config.rope_theta <= 0) {
    return absl::InvalidArgumentError(absl::StrCat("rope_theta is ", config.rope_theta));
  }
  if (rope.kind == Kind::kDefault) return absl::OkStatus();
  SH_RETURN_IF_ERROR(CheckScale("factor", rope.factor, 1));
  if (rope.kind == Kind::kDynamic && config.head_dim <= 2) {
    return absl::InvalidArgumentError("dynamic RoPE needs a head_dim above 2");
  }
  if (rope.kind == Kind::kLinear || rope.kind == Kind::kDynamic) return absl::OkStatus();
  SH_RETURN_IF_ERROR(
      CheckRange("original_max_position_embeddings", rope.original_positions, kPositionsMax));
  if (rope.kind == Kind::kLlama3) {
    SH_RETURN_IF_ERROR(CheckScale("low_freq_factor", rope.low_freq_factor, 0));
    SH_RETURN_IF_ERROR(CheckScale("high_freq_factor", rope.high_freq_factor, 0));
    if (rope.high_freq_factor > rope.low_freq_factor) return absl::OkStatus();
    return absl::InvalidArgumentError("RoPE's high_freq_factor must be above its low_freq_factor");
  }
  SH_RETURN_IF_ERROR(CheckScale("attention_factor", rope.attention_factor, 0));
  SH_RETURN_IF_ERROR(CheckScale("beta_fast", rope.beta_fast, 0));
  SH_RETURN_IF_ERROR(CheckScale("beta_slow", rope.beta_slow, 0));
  if (config.rope_theta <= 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("rope_theta is ", config.rope_theta, "; YaRN needs one above 1"));
  }
  if (rope.beta_fast > rope.beta_slow) return absl::OkStatus();
  return absl::InvalidArgumentError("RoPE's beta_fast must be above its beta_slow");
}

absl::Status CheckWindow(const ModelConfig& config) {
  if (config.sliding_window < 0 || config.sliding_window > kPositionsMax) {
    return absl::InvalidArgumentError(absl::StrCat("sliding_window is ", config.sliding_window));
  }
  const std::vector<bool>& slides = config.sliding_layers;
  const auto sliding = std::count(slides.begin(), slides.end(), true);
  const bool mixed = sliding > 0 && sliding < static_cast<int64_t>(slides.size());
  if (slides.empty() || (config.sliding_window > 0 && mixed &&
                         static_cast<int64_t>(slides.size()) == config.layers)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("the kinds of ", slides.size(), " layers do not fit a model of ", config.layers,
                   " layers with a window of ", config.sliding_window));
}

// What a model of this name has in `transformers`: a checkpoint with anything else could be
// computed, but not written so that others open it.
absl::Status CheckArchitecture(const ModelConfig& config) {
  const std::string& name = config.architecture;
  const auto lacks = [&](absl::string_view what) {
    return absl::UnimplementedError(
        absl::StrCat("architecture \"", name, "\" with ", what, " is not implemented"));
  };
  const bool qwen2 = name == "qwen2", qwen3 = name == "qwen3", mistral = name == "mistral";
  const bool llama = name == "llama";
  if (!llama && !qwen2 && !qwen3 && !mistral) {
    return absl::UnimplementedError(absl::StrCat(
        "architecture \"", name,
        "\" is not implemented, only \"llama\", \"qwen2\", \"qwen3\" and \"mistral\""));
  }
  if (config.qk_norm != qwen3) return lacks(qwen3 ? "no q and k norms" : "q and k norms");
  if (config.mlp_bias && !llama) return lacks("biases in its feed-forward layers");
  if (qwen2 && (!config.qkv_bias || config.output_bias)) {
    return lacks("other biases than those of q, k and v");
  }
  if ((llama || qwen3) && config.qkv_bias != config.output_bias) {
    return lacks("biases in some of its attention projections only");
  }
  if (mistral && (config.qkv_bias || config.output_bias)) return lacks("biases");
  if (mistral && !config.sliding_layers.empty()) return lacks("a window in some layers only");
  if (llama && config.sliding_window > 0) return lacks("a sliding window");
  return absl::OkStatus();
}

}  // namespace

absl::string_view RopeKindName(RopeScaling::Kind kind) {
  switch (kind) {
    case RopeScaling::Kind::kDefault:
      return "default";
    case RopeScaling::Kind::kLinear:
      return "linear";
    case RopeScaling::Kind::kDynamic:
      return "dynamic";
    case RopeScaling::Kind::kYarn:
      return "yarn";
    case RopeScaling::Kind::kLlama3:
      return "llama3";
  }
  SH_CHECK(false, "no such RoPE kind");
  return "";
}

absl::Status ModelConfig::Validate() const {
  SH_RETURN_IF_ERROR(CheckArchitecture(*this));
  SH_RETURN_IF_ERROR(CheckRange("vocab_size", vocab_size, kVocabularyMax));
  SH_RETURN_IF_ERROR(CheckRange("hidden_size", hidden_size, kWidthMax));
  SH_RETURN_IF_ERROR(CheckRange("intermediate_size", intermediate_size, kWidthMax));
  SH_RETURN_IF_ERROR(CheckRange("num_hidden_layers", layers, kLayersMax));
  SH_RETURN_IF_ERROR(CheckRange("num_attention_heads", heads, kHeadsMax));
  SH_RETURN_IF_ERROR(CheckRange("num_key_value_heads", kv_heads, kHeadsMax));
  SH_RETURN_IF_ERROR(CheckRange("head_dim", head_dim, kHeadDimMax));
  SH_RETURN_IF_ERROR(CheckRange("max_position_embeddings", max_positions, kPositionsMax));
  if (ParameterCount() > kParametersMax) {
    return absl::InvalidArgumentError(absl::StrCat("the sizes ask for ", ParameterCount(),
                                                   " parameters; at most ", kParametersMax,
                                                   " are possible"));
  }
  if (heads % kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat("num_attention_heads (", heads,
                                                   ") must be a multiple of num_key_value_heads (",
                                                   kv_heads, ")"));
  }
  if (head_dim % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("head_dim is ", head_dim, "; rotary embeddings need an even number"));
  }
  SH_RETURN_IF_ERROR(CheckRope(*this));
  SH_RETURN_IF_ERROR(CheckWindow(*this));
  if (!std::isfinite(rms_norm_eps) || rms_norm_eps <= 0 || rms_norm_eps >= 1) {
    return absl::InvalidArgumentError(absl::StrCat("rms_norm_eps is ", rms_norm_eps));
  }
  SH_RETURN_IF_ERROR(CheckTokenId("bos_token_id", bos_id, vocab_size));
  SH_RETURN_IF_ERROR(CheckTokenId("eos_token_id", eos_id, vocab_size));
  if (more_eos_ids.size() >= kEndIdsMax) {
    return absl::InvalidArgumentError(absl::StrCat("eos_token_id lists ", more_eos_ids.size() + 1,
                                                   " ids; at most ", kEndIdsMax, " are possible"));
  }
  for (const int64_t id : more_eos_ids) {
    SH_RETURN_IF_ERROR(CheckTokenId("eos_token_id", id, vocab_size));
  }
  return CheckTokenId("pad_token_id", pad_id, vocab_size);
}

bool ModelConfig::Parameter::IsBias() const { return absl::EndsWith(name, ".bias"); }

std::vector<ModelConfig::Parameter> ModelConfig::Parameters() const {
  std::vector<Parameter> all;
  all.reserve(static_cast<size_t>(layers) * 18 + 3);
  all.push_back({"model.embed_tokens.weight", {vocab_size, hidden_size}});
  const int64_t q = heads * head_dim;
  const int64_t kv = kv_heads * head_dim;
  for (int64_t i = 0; i < layers; ++i) {
    const std::string layer = absl::StrCat("model.layers.", i, ".");
    const auto add = [&](absl::string_view name, int64_t out, int64_t in, bool bias) {
      all.push_back({absl::StrCat(layer, name, ".weight"), {out, in}});
      if (bias) all.push_back({absl::StrCat(layer, name, ".bias"), {out}});
    };
    add("self_attn.q_proj", q, hidden_size, qkv_bias);
    add("self_attn.k_proj", kv, hidden_size, qkv_bias);
    add("self_attn.v_proj", kv, hidden_size, qkv_bias);
    add("self_attn.o_proj", hidden_size, q, output_bias);
    if (qk_norm) {
      all.push_back({layer + "self_attn.q_norm.weight", {head_dim}});
      all.push_back({layer + "self_attn.k_norm.weight", {head_dim}});
    }
    add("mlp.gate_proj", intermediate_size, hidden_size, mlp_bias);
    add("mlp.up_proj", intermediate_size, hidden_size, mlp_bias);
    add("mlp.down_proj", hidden_size, intermediate_size, mlp_bias);
    all.push_back({layer + "input_layernorm.weight", {hidden_size}});
    all.push_back({layer + "post_attention_layernorm.weight", {hidden_size}});
  }
  all.push_back({"model.norm.weight", {hidden_size}});
  if (!tie_embeddings) all.push_back({"lm_head.weight", {vocab_size, hidden_size}});
  return all;
}

int64_t ModelConfig::ParameterCount() const {
  const int64_t q = heads * head_dim;
  const int64_t kv = kv_heads * head_dim;
  int64_t layer =
      hidden_size * (2 * q + 2 * kv) + 3 * hidden_size * intermediate_size + 2 * hidden_size;
  if (qkv_bias) layer += q + 2 * kv;
  if (output_bias) layer += hidden_size;
  if (mlp_bias) layer += 2 * intermediate_size + hidden_size;
  if (qk_norm) layer += 2 * head_dim;
  return vocab_size * hidden_size * (tie_embeddings ? 1 : 2) + layers * layer + hidden_size;
}

int64_t ModelConfig::TokensMax() const {
  double stretched = 0;
  if (rope.kind == RopeScaling::Kind::kLinear || rope.kind == RopeScaling::Kind::kDynamic) {
    stretched = static_cast<double>(max_positions) * rope.factor;
  } else if (rope.kind == RopeScaling::Kind::kYarn) {
    stretched = static_cast<double>(rope.original_positions) * rope.factor;
  }
  stretched = std::min(stretched, static_cast<double>(kPositionsMax));
  return std::max(max_positions, static_cast<int64_t>(stretched));
}

int64_t ModelConfig::WindowOf(int64_t layer) const {
  SH_CHECK(layer >= 0 && layer < layers, layer);
  const bool slides = sliding_layers.empty() || sliding_layers[static_cast<size_t>(layer)];
  return slides ? sliding_window : 0;
}

void ModelConfig::SetWindow(int64_t window, std::vector<bool> slides) {
  SH_CHECK(window >= 0 && static_cast<int64_t>(slides.size()) == layers);
  const auto sliding = static_cast<int64_t>(std::count(slides.begin(), slides.end(), true));
  sliding_window = sliding > 0 ? window : 0;
  const bool mixed = sliding_window > 0 && sliding < layers;
  sliding_layers = mixed ? std::move(slides) : std::vector<bool>();
}

ModelConfig ModelConfig::WithLayers(absl::Span<const int64_t> kept) const {
  ModelConfig shallow = *this;
  shallow.layers = static_cast<int64_t>(kept.size());
  std::vector<bool> slides;
  for (const int64_t layer : kept) slides.push_back(WindowOf(layer) > 0);
  shallow.SetWindow(sliding_window, std::move(slides));
  return shallow;
}

}  // namespace stillhouse

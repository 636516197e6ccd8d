#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"
#include "common/file.h"
#include "common/status.h"
#include "common/tensor_view.h"
#include "formats/float_codec.h"
#include "tests/formats/gguf_builder.h"
#include "tests/formats/tiny_model.h"
#include "tests/formats/tiny_tokenizer.h"

namespace stillhouse {
namespace {

constexpr size_t kBlock = 32;

template <typename T>
void Append(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

std::string EncodeQ8_0(const std::vector<float>& values) {
  std::string out;
  for (size_t i = 0; i < values.size(); i += kBlock) {
    float largest = 0;
    for (size_t j = 0; j < kBlock; ++j) largest = std::max(largest, std::abs(values[i + j]));
    const uint16_t bits = FloatToHalf(largest / 127);
    const float d = HalfToFloat(bits);
    Append(out, bits);
    for (size_t j = 0; j < kBlock; ++j) {
      const float quant = d == 0 ? 0 : std::round(values[i + j] / d);
      Append(out, static_cast<int8_t>(std::clamp(quant, -127.0f, 127.0f)));
    }
  }
  return out;
}

std::string EncodeQ4_1(const std::vector<float>& values) {
  std::string out;
  for (size_t i = 0; i < values.size(); i += kBlock) {
    const auto [low, high] = std::minmax_element(&values[i], &values[i] + kBlock);
    const uint16_t d_bits = FloatToHalf((*high - *low) / 15);
    const uint16_t m_bits = FloatToHalf(*low);
    const float d = HalfToFloat(d_bits);
    const float m = HalfToFloat(m_bits);
    Append(out, d_bits);
    Append(out, m_bits);
    std::array<uint8_t, kBlock> quants;
    for (size_t j = 0; j < kBlock; ++j) {
      const float quant = d == 0 ? 0 : std::round((values[i + j] - m) / d);
      quants[j] = static_cast<uint8_t>(std::clamp(quant, 0.0f, 15.0f));
    }
    for (size_t j = 0; j < 16; ++j)
      Append(out, static_cast<uint8_t>(quants[j] | quants[j + 16] << 4));
  }
  return out;
}

std::string EncodeF16(const std::vector<float>& values) {
  std::string out;
  for (const float value : values) Append(out, FloatToHalf(value));
  return out;
}

std::string EncodeBf16(const std::vector<float>& values) {
  std::string out;
  for (const float value : values) Append(out, FloatToBf16(value));
  return out;
}

std::string EncodeF32(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

// Hugging Face's row (half j, place i) of each head becomes row 2i + j, as llama.cpp wants it.
std::vector<float> Permuted(const std::vector<float>& values, int64_t heads, int64_t columns) {
  const int64_t rows = static_cast<int64_t>(values.size()) / columns;
  const int64_t head = rows / heads;
  std::vector<float> out(values.size());
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t within = row % head;
    const int64_t target = row - within + 2 * (within % (head / 2)) + within / (head / 2);
    std::copy_n(&values[row * columns], columns, &out[target * columns]);
  }
  return out;
}

std::string GgufName(const std::string& name) {
  return absl::StrReplaceAll(name, {{"model.layers.", "blk."},
                                    {"model.embed_tokens", "token_embd"},
                                    {"model.norm", "output_norm"},
                                    {"lm_head", "output"},
                                    {"self_attn.q_proj", "attn_q"},
                                    {"self_attn.k_proj", "attn_k"},
                                    {"self_attn.v_proj", "attn_v"},
                                    {"self_attn.o_proj", "attn_output"},
                                    {"self_attn.q_norm", "attn_q_norm"},
                                    {"self_attn.k_norm", "attn_k_norm"},
                                    {"mlp.gate_proj", "ffn_gate"},
                                    {"mlp.up_proj", "ffn_up"},
                                    {"mlp.down_proj", "ffn_down"},
                                    {"input_layernorm", "attn_norm"},
                                    {"post_attention_layernorm", "ffn_norm"}});
}

void AddTokenizer(GgufBuilder& file) {
  std::vector<std::string> tokens = TinyByteTokens();
  std::vector<std::string> merges;
  for (const auto& [left, right] : TinyMerges()) {
    tokens.push_back(left + right);
    merges.push_back(left + " " + right);
  }
  std::vector<int32_t> types(tokens.size(), 1);
  for (const char* special : {"<|endoftext|>", "<|im_start|>"}) {
    tokens.emplace_back(special);
    types.push_back(3);
  }
  file.AddString("tokenizer.ggml.model", "gpt2");
  file.AddString("tokenizer.ggml.pre", "smollm");
  file.AddStrings("tokenizer.ggml.tokens", tokens);
  file.AddI32s("tokenizer.ggml.token_type", types);
  file.AddStrings("tokenizer.ggml.merges", merges);
  file.AddU32("tokenizer.ggml.bos_token_id", kTinyEos);
  file.AddU32("tokenizer.ggml.eos_token_id", kTinyEos);
  file.AddBool("tokenizer.ggml.add_bos_token", false);
}

// As the converter of llama.cpp writes them; Llama 3's scaling is the tensor of AddDivisors.
void AddConfig(const ModelConfig& config, GgufBuilder& file) {
  const std::string prefix = config.architecture + ".";
  const auto add = [&](const char* key, int64_t value) {
    file.AddU32(prefix + key, static_cast<uint32_t>(value));
  };
  file.AddString("general.architecture", config.architecture);
  add("block_count", config.layers);
  add("context_length", config.max_positions);
  add("embedding_length", config.hidden_size);
  add("feed_forward_length", config.intermediate_size);
  add("attention.head_count", config.heads);
  add("attention.head_count_kv", config.kv_heads);
  if (config.head_dim * config.heads != config.hidden_size) {
    add("attention.key_length", config.head_dim);
    add("attention.value_length", config.head_dim);
  }
  file.AddF32(prefix + "rope.freq_base", static_cast<float>(config.rope_theta));
  file.AddF32(prefix + "attention.layer_norm_rms_epsilon", static_cast<float>(config.rms_norm_eps));
  const RopeScaling& rope = config.rope;
  if (rope.kind == RopeScaling::Kind::kDefault || rope.kind == RopeScaling::Kind::kLlama3) return;
  file.AddString(prefix + "rope.scaling.type", std::string(RopeKindName(rope.kind)));
  file.AddF32(prefix + "rope.scaling.factor", static_cast<float>(rope.factor));
  if (rope.kind == RopeScaling::Kind::kYarn) {
    add("rope.scaling.original_context_length", rope.original_positions);
  }
}

// What each frequency is divided by, as the converter computes it from Llama 3's numbers.
void AddDivisors(const ModelConfig& config, GgufBuilder& file) {
  const RopeScaling& rope = config.rope;
  std::vector<float> divisors;
  for (int64_t i = 0; i < config.head_dim; i += 2) {
    const double wavelength = 2 * M_PI * std::pow(config.rope_theta, double(i) / config.head_dim);
    const double long_enough = rope.original_positions / rope.low_freq_factor;
    if (wavelength < rope.original_positions / rope.high_freq_factor) {
      divisors.push_back(1);
    } else if (wavelength > long_enough) {
      divisors.push_back(static_cast<float>(rope.factor));
    } else {
      const double smooth = (rope.original_positions / wavelength - rope.low_freq_factor) /
                            (rope.high_freq_factor - rope.low_freq_factor);
      divisors.push_back(static_cast<float>(1 / ((1 - smooth) / rope.factor + smooth)));
    }
  }
  file.AddTensor("rope_freqs.weight", {config.head_dim / 2}, 0, EncodeF32(divisors));
}

// One parameter, matrices as `type`.
void AddParameter(const TinyModelOptions& options, const ModelConfig& config,
                  const ModelConfig::Parameter& parameter, const std::string& type,
                  GgufBuilder& file) {
  std::vector<float> values = TinyWeights(options, parameter);
  const bool q = absl::StrContains(parameter.name, "q_proj");
  if (config.architecture == "llama" && (q || absl::StrContains(parameter.name, "k_proj"))) {
    values = Permuted(values, q ? config.heads : config.kv_heads,
                      parameter.IsBias() ? 1 : config.hidden_size);
  }
  const std::string stored = parameter.shape.size() == 1 ? "F32" : type;
  const std::string name = GgufName(parameter.name);
  if (stored == "F32") {
    file.AddTensor(name, parameter.shape, 0, EncodeF32(values));
  } else if (stored == "F16") {
    file.AddTensor(name, parameter.shape, 1, EncodeF16(values));
  } else if (stored == "BF16") {
    file.AddTensor(name, parameter.shape, 30, EncodeBf16(values));
  } else if (stored == "Q8_0") {
    file.AddTensor(name, parameter.shape, 8, EncodeQ8_0(values));
  } else {
    SH_CHECK(stored == "Q4_1", stored);
    file.AddTensor(name, parameter.shape, 3, EncodeQ4_1(values));
  }
}

}  // namespace

absl::Status WriteTinyGguf(const std::string& path, const TinyModelOptions& options,
                           const std::string& type) {
  const ModelConfig config = TinyConfig(options);
  GgufBuilder file;
  AddConfig(config, file);
  AddTokenizer(file);
  if (config.rope.kind == RopeScaling::Kind::kLlama3) AddDivisors(config, file);
  for (const ModelConfig::Parameter& parameter : config.Parameters()) {
    AddParameter(options, config, parameter, type, file);
  }
  return WriteFileAtomically(path, file.Build());
}

std::string TinyGgufPart(const TinyModelOptions& options, const TinyPart& part) {
  const ModelConfig config = TinyConfig(options);
  GgufBuilder file;
  if (part.number == 0) {
    AddConfig(config, file);
    AddTokenizer(file);
  }
  const std::vector<ModelConfig::Parameter> parameters = config.Parameters();
  const auto u16 = [](int64_t value) {
    const auto narrow = static_cast<uint16_t>(value);
    return std::string(reinterpret_cast<const char*>(&narrow), sizeof(narrow));
  };
  file.AddRaw("split.no", 2, u16(part.number));
  file.AddRaw("split.count", 2, u16(part.count));
  const auto total = static_cast<uint32_t>(parameters.size() + part.tensors_error);
  file.AddRaw("split.tensors.count", 5, {reinterpret_cast<const char*>(&total), sizeof(total)});
  for (size_t i = 0; i < parameters.size(); ++i) {
    const auto at = static_cast<int64_t>(i) % part.count;
    if (at == part.tensors_of.value_or(part.number)) {
      AddParameter(options, config, parameters[i], "F16", file);
    }
  }
  return file.Build();
}

}  // namespace stillhouse

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"
#include "common/file.h"
#include "common/status.h"
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

}  // namespace

absl::Status WriteTinyGguf(const std::string& path, const TinyModelOptions& options,
                           const std::string& type) {
  const ModelConfig config = TinyConfig(options);
  GgufBuilder file;
  file.AddString("general.architecture", "llama");
  file.AddU32("llama.block_count", static_cast<uint32_t>(config.layers));
  file.AddU32("llama.context_length", static_cast<uint32_t>(config.max_positions));
  file.AddU32("llama.embedding_length", static_cast<uint32_t>(config.hidden_size));
  file.AddU32("llama.feed_forward_length", static_cast<uint32_t>(config.intermediate_size));
  file.AddU32("llama.attention.head_count", static_cast<uint32_t>(config.heads));
  file.AddU32("llama.attention.head_count_kv", static_cast<uint32_t>(config.kv_heads));
  file.AddF32("llama.rope.freq_base", static_cast<float>(config.rope_theta));
  file.AddF32("llama.attention.layer_norm_rms_epsilon", static_cast<float>(config.rms_norm_eps));
  AddTokenizer(file);
  for (const ModelConfig::Parameter& parameter : config.Parameters()) {
    std::vector<float> values = TinyWeights(options, parameter);
    const bool q = absl::StrContains(parameter.name, "q_proj");
    if (q || absl::StrContains(parameter.name, "k_proj")) {
      values = Permuted(values, q ? config.heads : config.kv_heads, config.hidden_size);
    }
    const std::string stored = parameter.shape.size() == 1 ? "F32" : type;
    const std::string name = GgufName(parameter.name);
    if (stored == "F32") {
      file.AddTensor(name, parameter.shape, 0, EncodeF32(values));
    } else if (stored == "F16") {
      file.AddTensor(name, parameter.shape, 1, EncodeF16(values));
    } else if (stored == "Q8_0") {
      file.AddTensor(name, parameter.shape, 8, EncodeQ8_0(values));
    } else {
      SH_CHECK(stored == "Q4_1", stored);
      file.AddTensor(name, parameter.shape, 3, EncodeQ4_1(values));
    }
  }
  return WriteFileAtomically(path, file.Build());
}

}  // namespace stillhouse

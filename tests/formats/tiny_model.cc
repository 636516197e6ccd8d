#include "tests/formats/tiny_model.h"

#include <cmath>

#include "common/file.h"
#include "common/random.h"
#include "common/status.h"
#include "formats/json.h"
#include "formats/safetensors.h"
#include "tests/formats/tiny_tokenizer.h"

namespace stillhouse {
namespace {

std::string CodePointUtf8(int code) {  // below U+0800
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xc0 | code >> 6), static_cast<char>(0x80 | (code & 0x3f))};
}

OrderedJson AddedToken(int32_t id, const std::string& content) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", true}};
}

}  // namespace

std::vector<std::string> TinyByteTokens() {
  std::vector<std::string> tokens;
  std::vector<bool> printable(256, false);
  for (int byte = 0; byte < 256; ++byte) {
    printable[byte] =
        (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    if (printable[byte]) tokens.push_back(CodePointUtf8(byte));
  }
  for (int code = 256; tokens.size() < 256; ++code) tokens.push_back(CodePointUtf8(code));
  return tokens;
}

const std::vector<std::pair<std::string, std::string>>& TinyMerges() {
  static const auto* const kMerges = new std::vector<std::pair<std::string, std::string>>{
      {"Ġ", "t"},  {"Ġ", "a"},  {"h", "e"},  {"i", "n"},  {"r", "e"},  {"o", "n"}, {"Ġt", "he"},
      {"e", "r"},  {"Ġ", "s"},  {"a", "t"},  {"Ġ", "w"},  {"Ġ", "o"},  {"e", "n"}, {"Ġ", "c"},
      {"i", "t"},  {"i", "s"},  {"a", "n"},  {"o", "r"},  {"e", "s"},  {"Ġ", "b"}, {"e", "d"},
      {"Ġ", "f"},  {"in", "g"}, {"Ġ", "p"},  {"o", "u"},  {"Ġa", "n"}, {"a", "l"}, {"a", "r"},
      {"Ġt", "o"}, {"Ġ", "m"},  {"Ġo", "f"}, {"Ġ", "in"}, {"Ġ", "d"},  {"Ġ", "h"}, {"Ġan", "d"},
      {"i", "c"},  {"l", "e"},  {"Ġt", "h"}, {"i", "on"}, {"a", "s"}};
  return *kMerges;
}

ModelConfig TinyConfig(const TinyModelOptions& options) {
  ModelConfig config;
  config.vocab_size = options.vocab_size;
  config.hidden_size = options.hidden;
  config.intermediate_size = options.intermediate;
  config.layers = options.layers;
  config.heads = options.heads;
  config.kv_heads = options.kv_heads;
  config.head_dim = options.head_dim > 0 ? options.head_dim : options.hidden / options.heads;
  config.architecture = options.architecture;
  config.qkv_bias = options.attention_bias || options.architecture == "qwen2";
  config.output_bias = options.attention_bias;
  config.mlp_bias = options.mlp_bias;
  config.qk_norm = options.architecture == "qwen3";
  config.sliding_window = options.sliding_window;
  config.rope = options.rope;
  config.max_positions = options.max_positions;
  config.tie_embeddings = options.tie_embeddings;
  config.dtype = options.dtype;
  config.bos_id = kTinyEos;
  config.eos_id = kTinyEos;
  SH_CHECK(config.vocab_size >= kTinyTokens, "a tiny model needs ", kTinyTokens, " rows");
  SH_CHECK_OK(config.Validate());
  return config;
}

std::vector<float> TinyWeights(const TinyModelOptions& options,
                               const ModelConfig::Parameter& parameter) {
  RandomStream random(DeriveSeed(options.seed, parameter.name));
  int64_t count = 1;
  for (const int64_t dimension : parameter.shape) count *= dimension;
  const bool norm = parameter.shape.size() == 1 && !parameter.IsBias();
  const double mean = norm ? 1.0 : 0.0;
  const double deviation = parameter.shape.size() == 1
                               ? 0.1
                               : 1.0 / std::sqrt(static_cast<double>(parameter.shape.back()));
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(mean + deviation * random.NextNormal());
  return values;
}

std::string TinyTokenizerJson() {
  OrderedJson vocabulary = OrderedJson::object();
  int32_t next = 0;
  for (const std::string& token : TinyByteTokens()) vocabulary[token] = next++;
  OrderedJson merges = OrderedJson::array();
  for (const auto& [left, right] : TinyMerges()) {
    vocabulary[left + right] = next++;
    merges.push_back(OrderedJson::array({left, right}));
  }
  SH_CHECK(next == kTinyEos && next + 2 == kTinyTokens);
  const OrderedJson byte_level = {{"type", "ByteLevel"},
                                  {"add_prefix_space", false},
                                  {"trim_offsets", true},
                                  {"use_regex", true}};
  const OrderedJson root = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", OrderedJson::array({AddedToken(kTinyEos, "<|endoftext|>"),
                                           AddedToken(kTinyEos + 1, "<|im_start|>")})},
      {"normalizer", nullptr},
      {"pre_tokenizer",
       {{"type", "Sequence"},
        {"pretokenizers",
         OrderedJson::array({{{"type", "Digits"}, {"individual_digits", true}}, byte_level})}}},
      {"post_processor", nullptr},
      {"decoder", byte_level},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"ignore_merges", false},
        {"vocab", vocabulary},
        {"merges", merges}}},
  };
  return root.dump(1) + "\n";
}

absl::Status WriteTinyModel(const std::string& folder, const TinyModelOptions& options) {
  const ModelConfig config = TinyConfig(options);
  SH_RETURN_IF_ERROR(MakeFolders(folder));
  const std::string dtype = options.dtype == "bfloat16"  ? "BF16"
                            : options.dtype == "float16" ? "F16"
                                                         : "F32";
  std::vector<SafetensorsTensor> tensors;
  for (const ModelConfig::Parameter& parameter : config.Parameters()) {
    tensors.push_back({parameter.name, dtype, parameter.shape});
  }
  SH_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsWriter> writer,
                      SafetensorsWriter::Create(JoinPath(folder, "model.safetensors"), tensors));
  for (const ModelConfig::Parameter& parameter : config.Parameters()) {
    SH_RETURN_IF_ERROR(writer->AppendF32(TinyWeights(options, parameter), dtype));
  }
  SH_RETURN_IF_ERROR(writer->Close());
  SH_RETURN_IF_ERROR(WriteFileAtomically(JoinPath(folder, "config.json"), ConfigToJson(config)));
  SH_RETURN_IF_ERROR(WriteFileAtomically(JoinPath(folder, "tokenizer.json"), TinyTokenizerJson()));
  const Json tokenizer_config = {{"bos_token", "<|endoftext|>"},
                                 {"eos_token", "<|endoftext|>"},
                                 {"tokenizer_class", "PreTrainedTokenizerFast"}};
  return WriteFileAtomically(JoinPath(folder, "tokenizer_config.json"),
                             tokenizer_config.dump(2) + "\n");
}

}  // namespace stillhouse

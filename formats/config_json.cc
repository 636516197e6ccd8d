// config.json of the four architectures, read and written. Defaults are those of the configuration
// classes of `transformers` 4.57 and 5.23, which agree.
#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "formats/json.h"
#include "formats/model_config.h"
#include "formats/rope_json.h"

namespace stillhouse {
namespace {

constexpr absl::string_view kSliding = "sliding_attention";
constexpr absl::string_view kFull = "full_attention";

// What a key that is missing means, where the architectures differ.
struct Architecture {
  absl::string_view name, class_name;
  int64_t max_positions;
  int64_t head_dim;               // 0: hidden_size / num_attention_heads
  bool kv_heads_are_heads;        // else num_key_value_heads has a default that no real model wants
  int64_t window, window_layers;  // sliding_window and max_window_layers
};
constexpr Architecture kArchitectures[] = {
    {"llama", "LlamaForCausalLM", 2048, 0, true, 0, 0},
    {"qwen2", "Qwen2ForCausalLM", 32768, 0, false, 4096, 28},
    {"qwen3", "Qwen3ForCausalLM", 32768, 128, false, 4096, 28},
    {"mistral", "MistralForCausalLM", 131072, 0, false, 4096, 0},
};

const Architecture* FindArchitecture(absl::string_view name) {
  for (const Architecture& known : kArchitectures) {
    if (known.name == name) return &known;
  }
  return nullptr;
}

// A list's first counts here. Llama 1 wrote -1 for "none".
absl::StatusOr<std::optional<int64_t>> TokenId(const JsonFields& fields, absl::string_view key) {
  const Json* value = fields.Find(key);
  if (value == nullptr) return std::optional<int64_t>();
  if (value->is_array()) {
    if (value->empty()) return std::optional<int64_t>();
    if (!value->front().is_number_integer()) return fields.WrongType(key, "an integer or a list");
    return std::optional<int64_t>(value->front().get<int64_t>());
  }
  SH_ASSIGN_OR_RETURN(std::optional<int64_t> id, fields.Int(key));
  if (id.has_value() && *id < 0) id.reset();
  return id;
}

absl::Status ReadTokenIds(const JsonFields& fields, ModelConfig& config) {
  SH_ASSIGN_OR_RETURN(config.bos_id, TokenId(fields, "bos_token_id"));
  SH_ASSIGN_OR_RETURN(config.eos_id, TokenId(fields, "eos_token_id"));
  SH_ASSIGN_OR_RETURN(config.pad_id, TokenId(fields, "pad_token_id"));
  const Json* eos = fields.Find("eos_token_id");
  if (eos == nullptr || !eos->is_array()) return absl::OkStatus();
  for (size_t i = 1; i < eos->size(); ++i) {
    if (!(*eos)[i].is_number_integer()) {
      return fields.WrongType("eos_token_id", "an integer or a list");
    }
    config.more_eos_ids.push_back((*eos)[i].get<int64_t>());
  }
  return absl::OkStatus();
}

// What a checkpoint of any of them may say that our decoder would compute differently.
absl::Status RefuseVariants(const JsonFields& fields, absl::string_view path) {
  SH_ASSIGN_OR_RETURN(const std::optional<std::string> activation, fields.String("hidden_act"));
  if (activation.value_or("silu") != "silu") {
    return absl::UnimplementedError(
        absl::StrCat(path, ": hidden_act \"", *activation, "\" is not implemented, only \"silu\""));
  }
  SH_ASSIGN_OR_RETURN(const std::optional<double> partial, fields.Number("partial_rotary_factor"));
  if (partial.value_or(1.0) != 1.0) {
    return absl::UnimplementedError(
        absl::StrCat(path, ": partial_rotary_factor ", *partial, " is not implemented"));
  }
  if (fields.Find("quantization_config") != nullptr) {
    return absl::UnimplementedError(absl::StrCat(
        path, ": quantised checkpoints (`quantization_config`) are not implemented; use GGUF"));
  }
  return absl::OkStatus();
}

absl::Status ReadDtype(const JsonFields& fields, absl::string_view path, ModelConfig& config) {
  SH_ASSIGN_OR_RETURN(std::optional<std::string> dtype, fields.String("dtype"));
  if (!dtype.has_value()) {
    SH_ASSIGN_OR_RETURN(dtype, fields.String("torch_dtype"));
  }
  if (!dtype.has_value()) return absl::OkStatus();
  for (const absl::string_view known : {"float32", "bfloat16", "float16"}) {
    if (*dtype == known) {
      config.dtype = *dtype;
      return absl::OkStatus();
    }
  }
  return absl::UnimplementedError(absl::StrCat(
      path, ": dtype \"", *dtype, "\" is not implemented, only float32, bfloat16 and float16"));
}

absl::Status ReadSizes(const JsonFields& fields, absl::string_view path,
                       const Architecture& architecture, ModelConfig& config) {
  const std::array<std::pair<absl::string_view, int64_t*>, 5> required = {{
      {"vocab_size", &config.vocab_size},
      {"hidden_size", &config.hidden_size},
      {"intermediate_size", &config.intermediate_size},
      {"num_hidden_layers", &config.layers},
      {"num_attention_heads", &config.heads},
  }};
  const auto missing = [&](absl::string_view key) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": `", key, "` is missing"));
  };
  for (const auto& [key, target] : required) {
    SH_ASSIGN_OR_RETURN(const std::optional<int64_t> value, fields.Int(key));
    if (!value.has_value()) return missing(key);
    *target = *value;
  }
  SH_ASSIGN_OR_RETURN(const std::optional<int64_t> kv_heads, fields.Int("num_key_value_heads"));
  if (!kv_heads.has_value() && !architecture.kv_heads_are_heads) {
    return missing("num_key_value_heads");
  }
  config.kv_heads = kv_heads.value_or(config.heads);
  SH_ASSIGN_OR_RETURN(std::optional<int64_t> head_dim, fields.Int("head_dim"));
  if (!head_dim.has_value() && architecture.head_dim > 0) head_dim = architecture.head_dim;
  if (!head_dim.has_value() && (config.heads <= 0 || config.hidden_size % config.heads != 0)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": hidden_size (", config.hidden_size,
                                                   ") is not a multiple of num_attention_heads (",
                                                   config.heads, ") and `head_dim` is missing"));
  }
  config.head_dim = head_dim.has_value() ? *head_dim : config.hidden_size / config.heads;
  SH_ASSIGN_OR_RETURN(const std::optional<int64_t> positions,
                      fields.Int("max_position_embeddings"));
  config.max_positions = positions.value_or(architecture.max_positions);
  SH_ASSIGN_OR_RETURN(const std::optional<double> eps, fields.Number("rms_norm_eps"));
  config.rms_norm_eps = eps.value_or(1e-6);
  SH_ASSIGN_OR_RETURN(const std::optional<bool> tied, fields.Bool("tie_word_embeddings"));
  config.tie_embeddings = tied.value_or(false);
  return absl::OkStatus();
}

// Qwen2's projections of q, k and v have biases whatever its config says.
absl::Status ReadBiases(const JsonFields& fields, absl::string_view path, ModelConfig& config) {
  SH_ASSIGN_OR_RETURN(const std::optional<bool> attention, fields.Bool("attention_bias"));
  SH_ASSIGN_OR_RETURN(const std::optional<bool> mlp, fields.Bool("mlp_bias"));
  const bool qwen2 = config.architecture == "qwen2";
  const bool mistral = config.architecture == "mistral";
  if ((qwen2 || mistral) && attention.value_or(qwen2) != qwen2) {
    return absl::UnimplementedError(absl::StrCat(path, ": `attention_bias` ",
                                                 *attention ? "true" : "false", " of ",
                                                 config.architecture, " is not implemented"));
  }
  config.qkv_bias = qwen2 || attention.value_or(false);
  config.output_bias = !qwen2 && attention.value_or(false);
  config.mlp_bias = mlp.value_or(false);
  config.qk_norm = config.architecture == "qwen3";
  return absl::OkStatus();
}

// `layer_types`: one of two words for each layer; empty where it is missing.
absl::StatusOr<std::vector<bool>> ReadLayerTypes(const JsonFields& fields, absl::string_view path,
                                                 int64_t layers) {
  std::vector<bool> slides;
  const Json* types = fields.Find("layer_types");
  if (types == nullptr) return slides;
  if (!types->is_array() || static_cast<int64_t>(types->size()) != layers) {
    return fields.WrongType("layer_types", absl::StrCat("a list of ", layers, " words"));
  }
  for (const Json& type : *types) {
    const std::string word = type.is_string() ? type.get<std::string>() : type.dump();
    if (word != kSliding && word != kFull) {
      return absl::UnimplementedError(absl::StrCat(path, ": layer_types \"", word.substr(0, 40),
                                                   "\" is not implemented, only \"", kFull,
                                                   "\" and \"", kSliding, "\""));
    }
    slides.push_back(word == kSliding);
  }
  return slides;
}

// REQUIRES: config.layers is valid. Mistral's layers all slide, Qwen's only with
// use_sliding_window, and then those that layer_types names, or those from max_window_layers on.
absl::Status ReadWindow(const JsonFields& fields, absl::string_view path,
                        const Architecture& architecture, ModelConfig& config) {
  const bool qwen = architecture.name == "qwen2" || architecture.name == "qwen3";
  // For Mistral, null says that there is none.
  const bool unsaid = qwen || !fields.Has("sliding_window");
  SH_ASSIGN_OR_RETURN(const std::optional<int64_t> asked, fields.Int("sliding_window"));
  int64_t window = asked.value_or(unsaid ? architecture.window : 0);
  if (window < 1 && asked.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": sliding_window is ", window));
  }
  SH_ASSIGN_OR_RETURN(const std::optional<bool> used, fields.Bool("use_sliding_window"));
  if (qwen && !used.value_or(false)) window = 0;
  SH_ASSIGN_OR_RETURN(const std::optional<int64_t> from, fields.Int("max_window_layers"));
  SH_ASSIGN_OR_RETURN(std::vector<bool> slides, ReadLayerTypes(fields, path, config.layers));
  const bool given = !slides.empty();
  for (int64_t i = static_cast<int64_t>(slides.size()); i < config.layers; ++i) {
    slides.push_back(!qwen || i >= from.value_or(architecture.window_layers));
  }
  const auto sliding = std::count(slides.begin(), slides.end(), true);
  const bool fits = window > 0 ? qwen || sliding == config.layers : sliding == 0;
  if (given && !fits) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": `layer_types` does not fit a sliding window of ", window, " tokens"));
  }
  config.SetWindow(window, std::move(slides));
  return absl::OkStatus();
}

void WriteWindow(const ModelConfig& config, Json& root) {
  if (config.architecture == "llama") return;
  const bool slides = config.sliding_window > 0;
  root["sliding_window"] = slides ? Json(config.sliding_window) : Json(nullptr);
  if (config.architecture == "mistral") return;
  Json types = Json::array();
  int64_t first = config.layers;
  for (int64_t i = config.layers - 1; i >= 0; --i) {
    const bool sliding = config.WindowOf(i) > 0;
    types.insert(types.begin(), sliding ? kSliding : kFull);
    if (sliding) first = i;
  }
  root["use_sliding_window"] = slides;
  root["max_window_layers"] = first;
  root["layer_types"] = std::move(types);
}

void WriteBiases(const ModelConfig& config, Json& root) {
  if (config.architecture == "llama" || config.architecture == "qwen3") {
    root["attention_bias"] = config.qkv_bias;
  }
  if (config.architecture == "llama") {
    root["mlp_bias"] = config.mlp_bias;
    root["pretraining_tp"] = 1;
  }
}

Json EosIds(const ModelConfig& config) {
  if (!config.eos_id.has_value()) return nullptr;
  if (config.more_eos_ids.empty()) return *config.eos_id;
  Json ids = Json::array({*config.eos_id});
  for (const int64_t id : config.more_eos_ids) ids.push_back(id);
  return ids;
}

}  // namespace

absl::StatusOr<ModelConfig> ParseConfigJson(absl::string_view json, absl::string_view path) {
  SH_ASSIGN_OR_RETURN(const Json root, ParseJson(json, path));
  if (!root.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a JSON object"));
  }
  const JsonFields fields(root, path);
  SH_ASSIGN_OR_RETURN(const std::optional<std::string> type, fields.String("model_type"));
  if (!type.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": `model_type` is missing"));
  }
  ModelConfig config;
  config.architecture = *type;
  const Architecture* architecture = FindArchitecture(*type);
  if (architecture == nullptr) return Annotate(config.Validate(), path);
  SH_RETURN_IF_ERROR(RefuseVariants(fields, path));
  SH_RETURN_IF_ERROR(ReadSizes(fields, path, *architecture, config));
  SH_RETURN_IF_ERROR(ReadBiases(fields, path, config));
  SH_RETURN_IF_ERROR(ReadRope(fields, path, config));
  SH_RETURN_IF_ERROR(ReadDtype(fields, path, config));
  SH_RETURN_IF_ERROR(ReadTokenIds(fields, config));
  SH_RETURN_IF_ERROR_AT(config.Validate(), path);
  SH_RETURN_IF_ERROR(ReadWindow(fields, path, *architecture, config));
  SH_RETURN_IF_ERROR_AT(config.Validate(), path);
  return config;
}

std::string ConfigToJson(const ModelConfig& config) {
  const auto id = [](const std::optional<int64_t>& value) {
    return value.has_value() ? Json(*value) : Json(nullptr);
  };
  const Architecture* architecture = FindArchitecture(config.architecture);
  SH_CHECK(architecture != nullptr, config.architecture);
  // Both dialects at once: each version of transformers passes over the other's keys.
  Json root = {
      {"architectures", Json::array({architecture->class_name})},
      {"attention_dropout", 0.0},
      {"bos_token_id", id(config.bos_id)},
      {"dtype", config.dtype},
      {"eos_token_id", EosIds(config)},
      {"head_dim", config.head_dim},
      {"hidden_act", "silu"},
      {"hidden_size", config.hidden_size},
      {"initializer_range", 0.02},
      {"intermediate_size", config.intermediate_size},
      {"max_position_embeddings", config.max_positions},
      {"model_type", config.architecture},
      {"num_attention_heads", config.heads},
      {"num_hidden_layers", config.layers},
      {"num_key_value_heads", config.kv_heads},
      {"pad_token_id", id(config.pad_id)},
      {"rms_norm_eps", config.rms_norm_eps},
      {"tie_word_embeddings", config.tie_embeddings},
      {"torch_dtype", config.dtype},
      {"use_cache", true},
      {"vocab_size", config.vocab_size},
  };
  WriteRope(config, root);
  WriteBiases(config, root);
  WriteWindow(config, root);
  return root.dump(2) + "\n";
}

}  // namespace stillhouse

// Qwen2, Qwen3, Mistral and the kinds of RoPE: in config.json of both dialects, in GGUF, in
// fingerprints, and what is refused of them by name.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <set>

#include "common/file.h"
#include "common/status.h"
#include "formats/json.h"
#include "formats/model_files.h"
#include "tests/formats/tiny_model.h"

namespace stillhouse {
namespace {

using Kind = RopeScaling::Kind;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A small config of each architecture as transformers 5 would write it, but for what `change` sets;
// a null in `change` removes the key.
Json ConfigOf(const std::string& architecture, const Json& change = Json::object()) {
  Json json = {{"model_type", architecture},   {"vocab_size", 320},      {"hidden_size", 48},
               {"intermediate_size", 32},      {"num_hidden_layers", 4}, {"num_attention_heads", 3},
               {"num_key_value_heads", 1},     {"head_dim", 20},         {"rms_norm_eps", 1e-5},
               {"max_position_embeddings", 64}};
  for (const auto& [key, value] : change.items()) json[key] = value;
  return json;
}
absl::StatusOr<ModelConfig> Parse(const Json& json) {
  return ParseConfigJson(json.dump(), "config.json");
}
ModelConfig Parsed(const std::string& architecture, const Json& change = Json::object()) {
  const auto config = Parse(ConfigOf(architecture, change));
  SH_CHECK_OK(config.status());
  return *config;
}

TEST(ArchitecturesTest, HaveTheirBiasesNormsAndDefaults) {
  const Json bare = {{"head_dim", nullptr}, {"max_position_embeddings", nullptr}};
  const ModelConfig llama = Parsed("llama", bare), qwen2 = Parsed("qwen2", bare);
  const ModelConfig qwen3 = Parsed("qwen3", bare), mistral = Parsed("mistral", bare);
  EXPECT_FALSE(llama.qkv_bias || llama.output_bias || llama.mlp_bias || llama.qk_norm);
  EXPECT_TRUE(qwen2.qkv_bias && !qwen2.output_bias && !qwen2.qk_norm);
  EXPECT_TRUE(qwen3.qk_norm && !qwen3.qkv_bias);
  EXPECT_EQ(llama.head_dim, 16);
  EXPECT_EQ(qwen3.head_dim, 128);
  EXPECT_EQ(llama.max_positions, 2048);
  EXPECT_EQ(qwen2.max_positions, 32768);
  EXPECT_EQ(mistral.max_positions, 131072);
  EXPECT_EQ(mistral.sliding_window, 4096);
  EXPECT_EQ(qwen2.sliding_window, 0);
  for (const char* architecture : {"llama", "qwen3"}) {
    const ModelConfig biased = Parsed(architecture, {{"attention_bias", true}});
    EXPECT_TRUE(biased.qkv_bias && biased.output_bias && !biased.mlp_bias);
  }
  EXPECT_TRUE(Parsed("llama", {{"mlp_bias", true}}).mlp_bias);
}

TEST(ArchitecturesTest, ParametersAddUpToTheCount) {
  for (const ModelConfig& config :
       {Parsed("llama", {{"attention_bias", true}, {"mlp_bias", true}}), Parsed("qwen2"),
        Parsed("qwen3", {{"attention_bias", true}}), Parsed("mistral")}) {
    int64_t sum = 0;
    for (const ModelConfig::Parameter& parameter : config.Parameters()) {
      int64_t count = 1;
      for (const int64_t dimension : parameter.shape) count *= dimension;
      sum += count;
    }
    EXPECT_EQ(sum, config.ParameterCount()) << config.architecture;
  }
}

TEST(ArchitecturesTest, WindowsAreThoseOfTheirLayers) {
  const auto windows = [](const ModelConfig& config) {
    std::vector<int64_t> all;
    for (int64_t i = 0; i < config.layers; ++i) all.push_back(config.WindowOf(i));
    return all;
  };
  EXPECT_THAT(windows(Parsed("mistral", {{"sliding_window", 8}})), ElementsAre(8, 8, 8, 8));
  EXPECT_THAT(windows(Parsed("mistral", {{"sliding_window", nullptr}})), ElementsAre(0, 0, 0, 0));
  EXPECT_THAT(windows(Parsed("qwen2", {{"sliding_window", 8}})), ElementsAre(0, 0, 0, 0));
  const Json from_two = {
      {"sliding_window", 8}, {"use_sliding_window", true}, {"max_window_layers", 2}};
  const ModelConfig mixed = Parsed("qwen2", from_two);
  EXPECT_THAT(windows(mixed), ElementsAre(0, 0, 8, 8));
  Json by_type = from_two;
  by_type["layer_types"] = {"full_attention", "sliding_attention", "full_attention",
                            "sliding_attention"};
  EXPECT_THAT(windows(Parsed("qwen3", by_type)), ElementsAre(0, 8, 0, 8));
  // Students keep the kinds of the layers that they keep.
  EXPECT_THAT(windows(mixed.WithLayers({0, 1, 3})), ElementsAre(0, 0, 8));
  EXPECT_THAT(windows(mixed.WithLayers({2, 3})), ElementsAre(8, 8));
  EXPECT_EQ(mixed.WithLayers({0, 1}).sliding_window, 0);
  for (const ModelConfig& config : {mixed, mixed.WithLayers({0, 3}), mixed.WithLayers({0, 1}),
                                    mixed.WithLayers({2}), Parsed("qwen3", by_type)}) {
    const auto again = ParseConfigJson(ConfigToJson(config), "again");
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(*again, config);
  }
}

TEST(ArchitecturesTest, YarnsFactorsAreThoseThatTransformersDerives) {
  const auto yarn = [](const Json& more) {
    Json scaling = {{"type", "yarn"}, {"factor", 4}};
    if (!more.is_null()) scaling.update(more);
    return Parsed("llama", {{"rope_scaling", scaling}}).rope;
  };
  EXPECT_NEAR(yarn({}).attention_factor, 1 + 0.1 * std::log(4), 1e-15);
  EXPECT_EQ(yarn({}).original_positions, 64);
  EXPECT_EQ(yarn({{"beta_fast", 0}}).beta_fast, 32);
  EXPECT_EQ(
      yarn({{"attention_factor", 0.5}, {"mscale", 2}, {"mscale_all_dim", 1}}).attention_factor,
      0.5);
  EXPECT_NEAR(yarn({{"mscale", 2}, {"mscale_all_dim", 1}}).attention_factor,
              (1 + 0.2 * std::log(4)) / (1 + 0.1 * std::log(4)), 1e-15);
  EXPECT_EQ(yarn({{"mscale", 2}}), yarn({}));
}

TEST(ArchitecturesTest, ScalingStretchesTheLongestText) {
  const auto tokens = [](const Json& scaling) {
    return Parsed("llama", {{"rope_scaling", scaling}}).TokensMax();
  };
  EXPECT_EQ(tokens(nullptr), 64);
  EXPECT_EQ(tokens({{"type", "dynamic"}, {"factor", 2.5}}), 160);
  EXPECT_EQ(tokens({{"type", "linear"}, {"factor", 2}}), 128);
  EXPECT_EQ(tokens({{"type", "yarn"}, {"factor", 8}, {"original_max_position_embeddings", 16}}),
            128);
  EXPECT_EQ(tokens({{"type", "yarn"}, {"factor", 2}, {"original_max_position_embeddings", 16}}),
            64);
}

TEST(ArchitecturesTest, RefusesByNameWhatItWouldComputeOtherwise) {
  const auto scaling = [](const Json& inner) { return Json{{"rope_scaling", inner}}; };
  const struct {
    const char* architecture;
    Json change;
    const char* says;
  } cases[] = {
      {"gemma2", {}, "gemma2"},
      {"llama", scaling({{"rope_type", "longrope"}, {"factor", 2}}), "longrope"},
      {"llama", scaling({{"type", "mrope"}}), "mrope"},
      {"llama", scaling({{"type", "yarn"}, {"rope_type", "linear"}, {"factor", 2}}), "of type"},
      {"llama", scaling({{"type", "linear"}}), "factor"},
      {"llama", scaling({{"type", "linear"}, {"factor", 0.5}}), "factor"},
      {"llama", scaling({{"type", "linear"}, {"factor", 2}, {"mscale", 1}}), "mscale"},
      {"llama", scaling({{"type", "llama3"}, {"factor", 2}, {"low_freq_factor", 1}}),
       "high_freq_factor"},
      {"llama",
       scaling(
           {{"type", "llama3"}, {"factor", 2}, {"low_freq_factor", 4}, {"high_freq_factor", 1}}),
       "high_freq_factor"},
      {"llama", scaling({{"type", "yarn"}, {"factor", 2}, {"short_factor", {1, 2}}}),
       "short_factor"},
      {"llama", scaling({{"type", "yarn"}, {"factor", 2}, {"beta_fast", 0.5}}), "beta_fast"},
      {"llama", scaling({{"full_attention", {{"rope_type", "default"}}}}), "full_attention"},
      {"llama",
       scaling({{"type", "dynamic"}, {"factor", 2}, {"original_max_position_embeddings", 3}}),
       "original_max_position_embeddings"},
      {"llama",
       {{"rope_scaling", {{"type", "yarn"}, {"factor", 2}}},
        {"original_max_position_embeddings", 3}},
       "original_max_position_embeddings"},
      {"llama",
       {{"rope_scaling", {{"type", "linear"}, {"factor", 2}}},
        {"rope_parameters", {{"rope_type", "linear"}, {"factor", 3}}}},
       "differ"},
      {"llama", {{"partial_rotary_factor", 0.5}}, "partial_rotary_factor"},
      {"llama", {{"sliding_window", 8}}, "sliding window"},
      {"qwen2", {{"attention_bias", false}}, "attention_bias"},
      {"qwen2", {{"mlp_bias", true}}, "biases"},
      {"qwen2", {{"num_key_value_heads", nullptr}}, "num_key_value_heads"},
      {"qwen2", {{"layer_types", {"full_attention"}}}, "layer_types"},
      {"qwen2",
       {{"layer_types", {"full_attention", "chunked_attention", "full_attention", "x"}}},
       "chunked_attention"},
      {"qwen2",
       {{"layer_types",
         {"full_attention", "sliding_attention", "full_attention", "full_attention"}}},
       "layer_types"},
      {"qwen3", {{"sliding_window", -8}, {"use_sliding_window", true}}, "sliding_window"},
      {"mistral", {{"attention_bias", true}}, "attention_bias"},
      {"mistral", {{"sliding_window", 0}}, "sliding_window"},
      {"mistral", {{"quantization_config", {{"bits", 4}}}}, "quantization_config"},
      {"llama", {{"eos_token_id", std::vector<int>(kEndIdsMax + 1, 2)}}, "at most 256"},
      {"llama",
       {{"vocab_size", 4000000}, {"hidden_size", 500000}, {"num_hidden_layers", 2}},
       "parameters"},
      {"llama",
       {{"num_hidden_layers", 2000}, {"hidden_size", 90000}, {"intermediate_size", 90000}},
       "parameters"},
  };
  for (const auto& test : cases) {
    const absl::Status status = Parse(ConfigOf(test.architecture, test.change)).status();
    EXPECT_FALSE(status.ok()) << test.change.dump();
    EXPECT_THAT(std::string(status.message()), HasSubstr(test.says)) << test.change.dump();
    EXPECT_THAT(std::string(status.message()), HasSubstr("config.json"));
  }
}

std::vector<TinyModelOptions> Variants() {
  std::vector<TinyModelOptions> all;
  TinyModelOptions options;
  options.heads = 3;
  options.kv_heads = 1;
  options.head_dim = 20;
  options.hidden = 48;
  options.intermediate = 32;
  options.tie_embeddings = false;
  for (const char* architecture : {"llama", "qwen2", "qwen3"}) {
    options.architecture = architecture;
    all.push_back(options);
  }
  all.back().attention_bias = true;
  options.architecture = "llama";
  options.attention_bias = options.mlp_bias = true;
  options.rope = {.kind = Kind::kLlama3, .factor = 8, .original_positions = 8192};
  all.push_back(options);
  options.attention_bias = options.mlp_bias = false;
  options.rope = {.kind = Kind::kLinear, .factor = 4};
  all.push_back(options);
  options.rope = {.kind = Kind::kYarn,
                  .factor = 4,
                  .original_positions = 128,
                  .attention_factor = 1 + 0.1 * std::log(4)};
  all.push_back(options);
  return all;
}

class ArchitectureFilesTest : public ::testing::Test {
 protected:
  std::string Path(const std::string& name) const { return JoinPath(folder_.path(), name); }
  absl::Status OpenChanged(std::string bytes, const std::string& from, const std::string& to) {
    SH_CHECK(from.size() == to.size());
    const size_t at = bytes.find(from);
    SH_CHECK(at != std::string::npos, from);
    bytes.replace(at, from.size(), to);
    std::ofstream(Path("changed.gguf"), std::ios::binary | std::ios::trunc) << bytes;
    return OpenModelFiles(Path("changed.gguf")).status();
  }

  TempFolder folder_ = *TempFolder::Create();
};

TEST_F(ArchitectureFilesTest, AGgufIsTheFoldersModel) {
  int number = 0;
  for (const TinyModelOptions& options : Variants()) {
    SCOPED_TRACE(absl::StrCat(options.architecture, " ", RopeKindName(options.rope.kind)));
    const std::string folder = Path(absl::StrCat("hf", number++)), gguf = Path("m.gguf");
    ASSERT_TRUE(WriteTinyModel(folder, options).ok());
    ASSERT_TRUE(WriteTinyGguf(gguf, options).ok());
    const auto expected = OpenModelFiles(folder);
    ASSERT_TRUE(expected.ok()) << expected.status();
    auto model = OpenModelFiles(gguf);
    ASSERT_TRUE(model.ok()) << model.status();
    model->config.dtype = expected->config.dtype;  // a GGUF names none
    EXPECT_EQ(model->config, expected->config);
    for (const TensorInfo& tensor : expected->weights->tensors()) {
      std::vector<float> want(tensor.Count()), got(tensor.Count());
      ASSERT_TRUE(expected->weights->ReadF32(tensor.name, absl::MakeSpan(want)).ok());
      ASSERT_TRUE(model->weights->ReadF32(tensor.name, absl::MakeSpan(got)).ok());
      EXPECT_EQ(got, want) << tensor.name;
    }
  }
}

TEST_F(ArchitectureFilesTest, NamesTheBiasOrNormThatIsMissing) {
  const std::vector<TinyModelOptions> variants = Variants();
  const std::string gguf = Path("m.gguf");
  ASSERT_TRUE(WriteTinyGguf(gguf, variants[1]).ok());
  EXPECT_THAT(
      std::string(OpenChanged(*ReadFile(gguf), "blk.1.attn_v.bias", "blk.1.attn_w.bias").message()),
      HasSubstr("\"blk.1.attn_v.bias\" is missing"));
  ASSERT_TRUE(WriteTinyGguf(gguf, variants[2]).ok());
  EXPECT_THAT(
      std::string(OpenChanged(*ReadFile(gguf), "blk.0.attn_k_norm", "blk.0.attn_z_norm").message()),
      HasSubstr("\"blk.0.attn_k_norm.weight\" is missing"));
  const std::string folder = Path("hf");
  ASSERT_TRUE(WriteTinyModel(folder, Variants()[0]).ok());
  const std::string config = JoinPath(folder, "config.json");
  Json json = *ParseJson(*ReadFile(config), config);
  json["attention_bias"] = true;
  ASSERT_TRUE(WriteFileAtomically(config, json.dump()).ok());
  EXPECT_THAT(std::string(OpenModelFiles(folder).status().message()),
              HasSubstr("\"model.layers.0.self_attn.q_proj.bias\" is missing"));
  // And one too many, which would be left out of every sum.
  json["attention_bias"] = false;
  ASSERT_TRUE(WriteFileAtomically(config, json.dump()).ok());
  EXPECT_TRUE(OpenModelFiles(folder).ok());
  const std::string biased = Path("biased");
  ASSERT_TRUE(WriteTinyModel(biased, variants[3]).ok());
  json["mlp_bias"] = true;
  ASSERT_TRUE(WriteFileAtomically(JoinPath(biased, "config.json"), json.dump()).ok());
  EXPECT_THAT(std::string(OpenModelFiles(biased).status().message()),
              HasSubstr("not part of a llama model"));
}

TEST_F(ArchitectureFilesTest, RefusesGgufKeysThatWouldBeComputedOtherwise) {
  const std::string gguf = Path("m.gguf");
  ASSERT_TRUE(WriteTinyGguf(gguf, Variants()[5]).ok());
  const std::string yarn = *ReadFile(gguf);
  EXPECT_THAT(std::string(OpenChanged(yarn, "yarn", "orny").message()), HasSubstr("orny"));
  EXPECT_THAT(
      std::string(
          OpenChanged(yarn, "llama.rope.scaling.factor", "llama.rope.scaling.fact0r").message()),
      HasSubstr("llama.rope.scaling.factor"));
  ASSERT_TRUE(WriteTinyGguf(gguf, Variants()[3]).ok());
  // The last two divisors are the factor.
  const auto bytes = [](float a, float b) {
    const float both[] = {a, b};
    return std::string(reinterpret_cast<const char*>(both), sizeof(both));
  };
  EXPECT_THAT(std::string(OpenChanged(*ReadFile(gguf), bytes(8, 8), bytes(8, 9)).message()),
              HasSubstr("rope_freqs.weight"));
}

TEST_F(ArchitectureFilesTest, FingerprintsTellScalingsAndWindowsApart) {
  TinyModelOptions options;
  options.architecture = "mistral";
  const std::string folder = Path("m");
  ASSERT_TRUE(WriteTinyModel(folder, options).ok());
  const std::string path = JoinPath(folder, "config.json");
  const Json plain = *ParseJson(*ReadFile(path), path);
  const auto fingerprint = [&](const Json& change) {
    Json json = plain;
    for (const auto& [key, value] : change.items()) {
      if (value == "erase") {
        json.erase(key);
      } else {
        json[key] = value;
      }
    }
    SH_CHECK_OK(WriteFileAtomically(path, json.dump()));
    const auto model = OpenModelFiles(folder);
    SH_CHECK_OK(model.status());
    return TeacherFingerprint(*model, "")->Hex();
  };
  const Json scaling = {{"rope_type", "yarn"}, {"factor", 4.0}};
  const Json four = {{"rope_parameters", "erase"}, {"dtype", "erase"}};
  Json four_yarn = four, five_yarn = {{"rope_theta", "erase"}, {"torch_dtype", "erase"}};
  four_yarn["rope_scaling"] = {
      {"type", "yarn"}, {"factor", 4}, {"attention_factor", 1 + 0.1 * std::log(4)}};
  five_yarn["rope_parameters"] = scaling;
  five_yarn["rope_parameters"]["rope_theta"] = 10000;
  five_yarn["rope_parameters"]["original_max_position_embeddings"] = 512;
  EXPECT_EQ(fingerprint(four), fingerprint(Json::object()));
  EXPECT_EQ(fingerprint(four_yarn), fingerprint(five_yarn));
  std::set<std::string> all = {fingerprint(Json::object()), fingerprint(five_yarn),
                               fingerprint({{"sliding_window", 8}}),
                               fingerprint({{"sliding_window", 9}})};
  five_yarn["rope_parameters"]["factor"] = 5;
  all.insert(fingerprint(five_yarn));
  five_yarn["rope_parameters"]["beta_slow"] = 2;
  all.insert(fingerprint(five_yarn));
  EXPECT_EQ(all.size(), 6u);
}

TEST_F(ArchitectureFilesTest, AnExportKeepsEverythingOfTheModel) {
  std::vector<TinyModelOptions> variants = Variants();
  TinyModelOptions mistral;
  mistral.architecture = "mistral";
  mistral.sliding_window = 7;
  variants.push_back(mistral);
  for (size_t i = 0; i < variants.size(); ++i) {
    const std::string folder = Path(absl::StrCat("from", i)), out = Path(absl::StrCat("to", i));
    ASSERT_TRUE(WriteTinyModel(folder, variants[i]).ok());
    const std::string ends = "{\"eos_token_id\": [296, 297, 5]}";
    ASSERT_TRUE(WriteFileAtomically(JoinPath(folder, "generation_config.json"), ends).ok());
    const auto model = OpenModelFiles(folder);
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_THAT(model->config.more_eos_ids, ElementsAre(297, 5));
    std::vector<TensorToWrite> tensors;
    for (const TensorInfo& info : model->weights->tensors()) {
      tensors.push_back({info.name, info.shape, "F32", [&, name = info.name](absl::Span<float> to) {
                           return model->weights->ReadF32(name, to);
                         }});
    }
    ASSERT_TRUE(WriteHuggingFaceFolder(out, model->config, *model->tokenizer, tensors).ok());
    const auto again = OpenModelFiles(out);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(again->config, model->config);
    EXPECT_EQ(*TeacherFingerprint(*again, ""), *TeacherFingerprint(*model, ""));
  }
}

}  // namespace
}  // namespace stillhouse

#include "formats/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/formats/tiny_model.h"

namespace stillhouse {
namespace {

using ::testing::HasSubstr;

constexpr char kTransformers4[] = R"({
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
  "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
  "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
  "rms_norm_eps": 1e-05, "rope_theta": 100000, "rope_scaling": null, "tie_word_embeddings": true,
  "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})";
constexpr char kTransformers5[] = R"({
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
  "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
  "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
  "max_position_embeddings": 8192, "rms_norm_eps": 1e-05, "tie_word_embeddings": true,
  "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
  "dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": [2], "pad_token_id": 2})";

absl::Status ParseWith(const std::string& from, const std::string& to) {
  std::string text = kTransformers4;
  const size_t at = text.find(from);
  if (at == std::string::npos) return absl::InternalError("the test's own text lacks: " + from);
  text.replace(at, from.size(), to);
  return ParseConfigJson(text, "config.json").status();
}

TEST(ModelConfigTest, BothDialectsGiveOneConfig) {
  const auto four = ParseConfigJson(kTransformers4, "config.json");
  const auto five = ParseConfigJson(kTransformers5, "config.json");
  ASSERT_TRUE(four.ok()) << four.status();
  ASSERT_TRUE(five.ok()) << five.status();
  EXPECT_EQ(*four, *five);
  EXPECT_EQ(four->head_dim, 64);
  EXPECT_EQ(four->rope_theta, 100000);
  EXPECT_EQ(four->ParameterCount(), 134515008);
}

TEST(ModelConfigTest, WritesWhatItReads) {
  TinyModelOptions options;
  options.tie_embeddings = false;
  options.dtype = "float16";
  const ModelConfig config = TinyConfig(options);
  const auto again = ParseConfigJson(ConfigToJson(config), "config.json");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(*again, config);
}

TEST(ModelConfigTest, ParametersAddUpToTheCount) {
  for (const bool tied : {true, false}) {
    TinyModelOptions options;
    options.tie_embeddings = tied;
    const ModelConfig config = TinyConfig(options);
    int64_t sum = 0;
    for (const ModelConfig::Parameter& parameter : config.Parameters()) {
      int64_t count = 1;
      for (const int64_t dimension : parameter.shape) count *= dimension;
      sum += count;
    }
    EXPECT_EQ(sum, config.ParameterCount());
    EXPECT_EQ(config.Parameters().size(), 2u * 9 + (tied ? 2 : 3));
  }
}

TEST(ModelConfigTest, RefusesByNameWhatItCannotCompute) {
  const struct {
    const char* from;
    const char* to;
    absl::StatusCode code;
    const char* says;
  } cases[] = {
      {"\"model_type\": \"llama\"", "\"model_type\": \"gpt_neox\"",
       absl::StatusCode::kUnimplemented, "gpt_neox"},
      {"\"rope_scaling\": null", "\"rope_scaling\": {\"type\": \"longrope\"}",
       absl::StatusCode::kUnimplemented, "longrope"},
      {"\"rope_scaling\": null", "\"rope_parameters\": {\"rope_theta\": 5.0}",
       absl::StatusCode::kInvalidArgument, "rope_theta"},
      {"\"hidden_act\": \"silu\"", "\"hidden_act\": \"gelu\"", absl::StatusCode::kUnimplemented,
       "gelu"},
      {"\"rope_scaling\": null", "\"attention_bias\": 1", absl::StatusCode::kInvalidArgument,
       "attention_bias"},
      {"\"rope_scaling\": null", "\"quantization_config\": {}", absl::StatusCode::kUnimplemented,
       "quantization_config"},
      {"\"bfloat16\"", "\"float8\"", absl::StatusCode::kUnimplemented, "float8"},
      {"\"vocab_size\": 49152", "\"vocab_size\": 0", absl::StatusCode::kInvalidArgument,
       "vocab_size"},
      {"\"vocab_size\": 49152", "\"vocab_size\": \"many\"", absl::StatusCode::kInvalidArgument,
       "vocab_size"},
      {"\"vocab_size\": 49152", "\"vocab_size\": 1e99", absl::StatusCode::kInvalidArgument,
       "vocab_size"},
      {"\"vocab_size\": 49152,", "", absl::StatusCode::kInvalidArgument, "vocab_size"},
      {"\"num_hidden_layers\": 30", "\"num_hidden_layers\": 99999999999",
       absl::StatusCode::kInvalidArgument, "num_hidden_layers"},
      {"\"num_key_value_heads\": 3", "\"num_key_value_heads\": 2",
       absl::StatusCode::kInvalidArgument, "multiple"},
      {"\"num_attention_heads\": 9", "\"num_attention_heads\": 0",
       absl::StatusCode::kInvalidArgument, "num_attention_heads"},
      {"\"eos_token_id\": 2", "\"eos_token_id\": 49152", absl::StatusCode::kInvalidArgument,
       "eos_token_id"},
      {"\"rope_scaling\": null", "\"vocab_size\": 5", absl::StatusCode::kInvalidArgument, "twice"},
  };
  for (const auto& test : cases) {
    const absl::Status status = ParseWith(test.from, test.to);
    EXPECT_EQ(status.code(), test.code) << test.to << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(test.says));
    EXPECT_THAT(std::string(status.message()), HasSubstr("config.json"));
  }
}

TEST(ModelConfigTest, RefusesWhatIsNotAnObjectOrNestsTooDeep) {
  for (const std::string& text :
       {std::string(), std::string("[]"), std::string("{\"model_type\": \"llama\""),
        std::string(100000, '['), std::string("{\"a\": 1e999}"),
        std::string("{\"a\": \"\xff\"}")}) {
    EXPECT_EQ(ParseConfigJson(text, "c").status().code(), absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace stillhouse

#include "tests/student/small_student.h"

#include <algorithm>

#include "ATen/ops/empty.h"
#include "common/random.h"
#include "common/status.h"
#include "model/parallel.h"

namespace stillhouse {
namespace {

constexpr int64_t kVocabulary = 53;

at::Tensor TeacherHead(at::ScalarType dtype) {
  at::Tensor head = at::empty({57, 12}, at::TensorOptions().dtype(at::kFloat));
  RandomStream random(77);
  for (int64_t i = 0; i < head.numel(); ++i) {
    head.mutable_data_ptr<float>()[i] = static_cast<float>(random.NextNormal() * 0.5);
  }
  return head.to(dtype);
}

}  // namespace

ModelConfig SmallConfig(bool tied) {
  ModelConfig config;
  config.vocab_size = 61;
  config.hidden_size = 16;
  config.intermediate_size = 24;
  config.layers = 2;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 4;
  config.max_positions = 64;
  config.tie_embeddings = tied;
  SH_CHECK_OK(config.Validate());
  return config;
}

ModelConfig SmallVariant(const std::string& architecture) {
  ModelConfig config = SmallConfig(/*tied=*/false);
  config.architecture = architecture;
  config.qk_norm = architecture == "qwen3";
  config.qkv_bias = architecture == "qwen2" || architecture == "qwen3";
  config.output_bias = architecture == "qwen3";
  if (architecture == "qwen2" || architecture == "mistral") {
    config.SetWindow(5, {architecture == "mistral", true});
  }
  if (architecture == "mistral") {
    config.rope = {.kind = RopeScaling::Kind::kYarn, .factor = 4, .original_positions = 8};
  } else if (architecture == "llama") {
    config.max_positions = 8;
    config.rope = {.kind = RopeScaling::Kind::kDynamic, .factor = 8};
  }
  SH_CHECK_OK(config.Validate());
  return config;
}

SmallStudent::SmallStudent(std::vector<LossTerm> terms, const ModelConfig& config, DType compute,
                           uint64_t seed, Communicator* communicator) {
  SetComputeThreads(1);  // so small that threads would only wait for one another
  if (communicator == nullptr) {
    alone = MakeThreadCommunicators(1, absl::Minutes(1));
    communicator = alone[0].get();
  }
  state = std::make_unique<StudentState>(
      config, compute,
      ShardOptions{communicator->rank(), communicator->size(), {.elements_max = 1000}});
  for (const FlatParameter& parameter : state->layout.parameters()) {
    RandomStream random(DeriveSeed(seed, parameter.name));
    const bool norm = parameter.name.find("norm") != std::string::npos;
    std::vector<float> values(parameter.count);
    for (float& value : values) {
      const double drawn = norm ? 1 + 0.1 * random.NextNormal() : 0.3 * random.NextNormal();
      value = static_cast<float>(drawn);
    }
    ForOwned(state->pieces, {parameter.offset, parameter.offset + parameter.count},
             [&](size_t flat, size_t local, size_t count) {
               std::copy_n(values.data() + (flat - parameter.offset), count,
                           state->masters.data() + local);
             });
  }
  zero2 = std::make_unique<Zero2>(state->plan, *communicator, state->Shard(),
                                  Zero2Options{.wire = compute});
  SH_CHECK_OK(zero2->PublishWeights(RunSerially));
  SH_CHECK_OK(zero2->AwaitAllWeights());
  const at::ScalarType dtype = compute == DType::kF32 ? at::kFloat : at::kBFloat16;
  loss = {std::move(terms), kVocabulary, TeacherHead(dtype)};
  auto made = MakeAutogradStudent(config, state->Weights(), loss);
  SH_CHECK_OK(made);
  model = *std::move(made);
}

std::unique_ptr<StudentModel> SmallStudent::Planned(int64_t tokens_max, StepObserver* observer) {
  auto made = MakePlannedStudent(model->config(), state->Weights(), loss, tokens_max, observer);
  SH_CHECK_OK(made);
  return *std::move(made);
}

StudentRecipe SmallRecipe() {
  StudentRecipe recipe;
  recipe.name = "small";
  recipe.dtype = "fp32";
  recipe.batch_tokens = 60;
  recipe.micro_batch = 40;
  recipe.steps = 10;
  recipe.optimizer.lr = 1e-2;
  recipe.optimizer.warmup = 0.2;
  recipe.seed = 4;
  return recipe;
}

}  // namespace stillhouse

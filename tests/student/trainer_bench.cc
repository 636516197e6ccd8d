#include "tests/student/trainer_bench.h"

#include "common/random.h"
#include "common/status.h"
#include "formats/model_files.h"
#include "formats/safetensors.h"
#include "model/parallel.h"
#include "recipe/recipe.h"
#include "sharding/communicator.h"
#include "tests/formats/tiny_model.h"

namespace stillhouse {
namespace {

constexpr uint32_t kHidden = 64;

}  // namespace

const char kTrainerRecipe[] = R"(name: test
teacher: {model: teacher, dtype: fp32}
dataset:
  sources: [{path: "corpus.txt"}]
  max_tokens: 32
capture:
  logits: {method: sampled, draws: 50}
cache: {directory: cache}
output: runs
students:
  - name: small
    init: {from: teacher, layers: {keep: 2, by: block_influence}}
    dtype: bf16
    batch: {tokens: 60, micro_batch: 40, packing: true}
    losses:
      - {kl: {targets: sampled}, weight: 0.9}
      - {cross_entropy: {}, weight: 0.1}
    optimizer: {name: adamw, lr: 5e-3, warmup: 0.2, clip: 1.0}
    steps: 7
    seed: 7
    evaluate: {every: 3}
    checkpoint: {every: 2, keep: 2}
)";

TrainerBench::TrainerBench(const std::string& recipe_text)
    : folder_(*TempFolder::Create()), cache(loop_), run(loop_), thread_([this] { loop_.Run(); }) {
  SetComputeThreads(1);
  SH_CHECK_OK(WriteTinyModel(JoinPath(folder_.path(), "teacher"), {.layers = 4}));
  const std::string recipe_path = JoinPath(folder_.path(), "recipe.yaml");
  SH_CHECK_OK(WriteFileAtomically(recipe_path, recipe_text));
  auto recipe = ReadRecipe(recipe_path);
  SH_CHECK_OK(recipe);
  auto tokenizer = OpenTokenizer(recipe->teacher.model);
  SH_CHECK_OK(tokenizer);
  const std::string bytes =
      MakeTestPlanBytes({.vocabulary = static_cast<uint32_t>((*tokenizer)->size()),
                         .tokenizer = (*tokenizer)->Fingerprint()});
  plan = *ParsePlan(std::make_shared<const std::string>(bytes));
  cache.objects[PlanObjectName(plan->digest())] = bytes;
  teacher.fingerprint = Sha256Of("teacher");
  teacher.vocabulary = plan->vocabulary();
  teacher.hidden_size = kHidden;
  teacher.top_k = 9;
  spec.recipe_path = recipe_path;
  spec.recipe_text = recipe_text;
  spec.student = recipe->students.at(0).name;
  spec.plan = plan->digest();
  spec.teacher = teacher.fingerprint;
  spec.run_epoch = 1;
  spec.run_folder = RunFolder(*recipe, recipe->students.at(0), {spec.plan, spec.teacher});
  for (const SectionSpec& section : teacher.Sections()) {
    spec.sections.push_back(section.Canonical());
    spec.held_out_sections.push_back(section.Canonical());
  }
  output = recipe->output;
  ranks = static_cast<int>(recipe->students.at(0).ranks);
  run.retry = absl::Milliseconds(20);
  AddObjects();
  for (uint32_t chunk = 0; chunk < plan->chunk_count(); ++chunk) {
    cache.AddChunk(*plan, teacher, chunk);
    run.states[chunk] = ChunkAvailability::kDurable;
  }
}

TrainerBench::~TrainerBench() {
  loop_.Stop();
  thread_.join();
}

absl::Status TrainerBench::Train() {
  const TrainerOptions options = {.report_every = absl::Milliseconds(20)};
  ends.assign(static_cast<size_t>(ranks), absl::OkStatus());
  if (ranks == 1) {
    ends[0] = TrainStudent(spec, Services{loop_, run, cache, stops[0]}, options);
    return ends[0];
  }
  auto communicators = MakeThreadCommunicators(ranks, absl::Minutes(5));
  std::vector<std::thread> threads;
  for (size_t rank = 0; rank < communicators.size(); ++rank) {
    threads.emplace_back([&, rank] {
      AdoptComputeThreads();
      ends[rank] = TrainStudent(
          spec, Services{loop_, run, cache, stops[rank], communicators[rank].get()}, options);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return ends[0];
}

void TrainerBench::AddObjects() {
  const Digest& fingerprint = teacher.fingerprint;
  cache.objects[ArtefactObjectName(fingerprint, absl::StrCat("influence/", plan->digest().Hex()))] =
      R"({"influence": [0.9, 0.1, 0.2, 0.8], "rows": 100})";
  const std::string path = JoinPath(folder_.path(), "head.safetensors");
  auto writer = SafetensorsWriter::Create(path, {{"lm_head.weight", "BF16", {320, kHidden}}});
  SH_CHECK_OK(writer);
  std::vector<float> values(320 * kHidden);
  RandomStream random(3);
  for (float& value : values) value = static_cast<float>(random.NextNormal() * 0.2);
  SH_CHECK_OK((*writer)->AppendF32(values, "BF16"));
  SH_CHECK_OK((*writer)->Close());
  cache.objects[ArtefactObjectName(fingerprint, "lm_head/bf16")] = *ReadFile(path);
}

std::string UninterruptedExport(const std::string& recipe) {
  TrainerBench bench(recipe);
  SH_CHECK_OK(bench.Train());
  return bench.Exported();
}

}  // namespace stillhouse

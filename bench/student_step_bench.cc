// Training steps of half of SmolLM2 (15 of its 30 layers, 2,048 rows a step in two micro-batches):
// cross-entropy alone, with sampled targets, with the exact KL from hidden states. Rows per second.
// Needs the teacher's GGUF under .deps/teacher.
#include <malloc.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <vector>

#include "benchmark/benchmark.h"
#include "common/random.h"
#include "common/status.h"
#include "common/tensor_view.h"
#include "formats/model_files.h"
#include "model/decoder.h"
#include "student/stepper.h"

namespace stillhouse {
namespace {

constexpr uint32_t kDocuments = 8, kRows = 256, kDraws = 50;

// Documents of equal length, of random ids.
class BenchPlan final : public Plan {
 public:
  explicit BenchPlan(uint32_t vocabulary)
      : vocabulary_(vocabulary), tokens_(kDocuments * (kRows + 1)), mask_(kRows + 1, 1) {
    RandomStream random(1);
    for (int32_t& token : tokens_) token = static_cast<int32_t>(random.NextBelow(vocabulary));
  }
  const Digest& digest() const override { return digest_; }
  const Digest& tokenizer_fingerprint() const override { return digest_; }
  uint32_t vocabulary() const override { return vocabulary_; }
  uint32_t max_tokens() const override { return kRows + 1; }
  uint32_t shuffle_window() const override { return 1; }
  const std::vector<std::string>& domains() const override { return domains_; }
  uint32_t document_count() const override { return kDocuments; }
  PlanDocument document(uint32_t index) const override {
    PlanDocument document;
    document.tokens = absl::MakeConstSpan(tokens_).subspan(index * (kRows + 1), kRows + 1);
    document.loss_mask = mask_;
    return document;
  }
  uint32_t chunk_count() const override { return 0; }
  uint32_t training_chunk_count() const override { return 0; }
  PlanChunk chunk(uint32_t) const override { return {}; }
  uint64_t training_rows() const override { return kDocuments * kRows; }
  uint64_t held_out_rows() const override { return 0; }

 private:
  Digest digest_;
  uint32_t vocabulary_;
  std::vector<std::string> domains_;
  std::vector<int32_t> tokens_;
  std::vector<uint8_t> mask_;
};

DocumentTargets Targets(uint32_t document, uint32_t vocabulary, uint32_t width) {
  DocumentTargets targets;
  targets.document = document;
  targets.sampled.draws = kDraws;
  targets.hidden.hidden_size = width;
  RandomStream random(2, document);
  for (uint32_t row = 0; row < kRows; ++row) {
    std::vector<uint32_t> ids(19);  // as many as the teacher's draws give on its text
    for (uint32_t& id : ids) id = static_cast<uint32_t>(random.NextBelow(vocabulary));
    std::sort(ids.begin(), ids.end());
    for (size_t i = 0; i < ids.size(); ++i) {
      targets.sampled.ids.push_back(static_cast<int32_t>(ids[i]));
      targets.sampled.counts.push_back(i == 0 ? kDraws - 18 : 1);
    }
    targets.sampled.offsets.push_back(static_cast<uint32_t>(targets.sampled.ids.size()));
    targets.stats.entropy.push_back(4.0f);
    for (uint32_t i = 0; i < width; ++i) {
      targets.hidden.values.push_back(FloatToBf16(static_cast<float>(random.NextNormal())));
    }
  }
  return targets;
}

enum class Gradients { kPlanned, kAutograd };

void Train(benchmark::State& state, const std::vector<LossTerm>& terms, Gradients how) {
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  const auto files = OpenModelFiles(SH_BENCH_TEACHER);
  if (!files.ok()) return state.SkipWithError(std::string(files.status().message()).c_str());
  StudentRecipe recipe;
  recipe.batch_tokens = 2048;
  recipe.micro_batch = 1024;
  recipe.steps = 1000;
  recipe.init.layers.resize(15);
  std::iota(recipe.init.layers.begin(), recipe.init.layers.end(), int64_t{0});
  const auto shape = ResolveShape(recipe, files->config, {});
  SH_CHECK_OK(shape);
  StudentState student(shape->config, DType::kBF16);
  SH_CHECK_OK(InitialiseMasters(*shape, *files->weights, 0, &student));
  const auto vocabulary = static_cast<uint32_t>(files->tokenizer->size());
  const auto width = static_cast<uint32_t>(files->config.hidden_size);
  const auto teacher = LoadDecoder(*files, at::kBFloat16);
  SH_CHECK_OK(teacher);
  const StudentLossOptions loss{terms, vocabulary, teacher->head};
  auto model = how == Gradients::kPlanned
                   ? MakePlannedStudent(shape->config, student.Weights(), loss, recipe.micro_batch)
                   : MakeAutogradStudent(shape->config, student.Weights(), loss);
  SH_CHECK_OK(model);
  Stepper stepper(recipe, terms, **model, student);
  const BenchPlan plan(vocabulary);
  std::vector<DocumentTargets> documents;
  for (uint32_t d = 0; d < kDocuments; ++d) documents.push_back(Targets(d, vocabulary, width));
  uint64_t step = 0;
  for (auto _ : state) {
    SH_CHECK_OK(stepper.Step(plan, documents, ++step, [] { return absl::OkStatus(); }));
  }
  state.SetItemsProcessed(static_cast<int64_t>(state.iterations() * kDocuments * kRows));
}

void CrossEntropy(benchmark::State& state) {
  Train(state, {{LossKind::kCrossEntropy}}, Gradients::kPlanned);
}
void CrossEntropyByAutograd(benchmark::State& state) {
  Train(state, {{LossKind::kCrossEntropy}}, Gradients::kAutograd);
}
void SampledKl(benchmark::State& state) {
  Train(state, {{LossKind::kSampledKl, 1, 0.9}, {LossKind::kCrossEntropy, 1, 0.1}},
        Gradients::kPlanned);
}
void ExactKl(benchmark::State& state) {
  Train(state, {{LossKind::kExactKl, 1, 0.9}, {LossKind::kCrossEntropy, 1, 0.1}},
        Gradients::kPlanned);
}
BENCHMARK(CrossEntropyByAutograd)->Unit(benchmark::kMillisecond)->UseRealTime()->Iterations(4);
BENCHMARK(CrossEntropy)->Unit(benchmark::kMillisecond)->UseRealTime()->Iterations(4);
BENCHMARK(SampledKl)->Unit(benchmark::kMillisecond)->UseRealTime()->Iterations(4);
BENCHMARK(ExactKl)->Unit(benchmark::kMillisecond)->UseRealTime()->Iterations(4);

}  // namespace
}  // namespace stillhouse

// Timed training steps of half of a teacher (its first 15 layers, 2,048 rows a step in two
// micro-batches, bf16), for tools/bench.py, which alternates them with PyTorch's. Prints one line
// of JSON: {"rows", "seconds", "flops"}, the last with the products of weights alone.
//
//   student_step_bench MODE TEACHER STEPS
//     ce, sampled, topk64, hidden_last   the loss; the last three with a tenth of cross-entropy
//     autograd                           ce, with gradients by autograd
//     teacher_head                       no step: the teacher's head times as many rows
//     peak                               no step: the fastest of products of square matrices (1024,
//     2048, 4096)
//
// Under mpirun the ranks share the step, and the first prints. Threads are OMP_NUM_THREADS', of
// each rank.
#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "ATen/ops/empty.h"
#include "ATen/ops/randn.h"
#include "absl/strings/numbers.h"
#include "common/random.h"
#include "common/status.h"
#include "common/tensor_view.h"
#include "formats/model_files.h"
#include "model/decoder.h"
#include "model/matmul.h"
#include "sharding/mpi_world.h"
#include "storage/codec/top_tokens.h"
#include "student/stepper.h"
#include "student/student_state.h"

namespace stillhouse {
namespace {

constexpr uint32_t kDocuments = 8, kRows = 256, kDraws = 50, kTop = 64;

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

// kTop ids with 86 % of the mass, as the teacher's have on its text.
void AppendTop(RandomStream& random, uint32_t vocabulary, TopTokenRows* rows) {
  std::vector<uint32_t> ids(kTop);
  do {
    for (uint32_t& id : ids) id = static_cast<uint32_t>(random.NextBelow(vocabulary));
    std::sort(ids.begin(), ids.end());
  } while (std::adjacent_find(ids.begin(), ids.end()) != ids.end());
  for (const uint32_t id : ids) {
    rows->ids.push_back(static_cast<int32_t>(id));
    rows->levels.push_back(LevelOf(std::log(0.86 / kTop)));
  }
  rows->offsets.push_back(static_cast<uint32_t>(rows->ids.size()));
  rows->residual_levels.push_back(LevelOf(std::log(0.14)));
}

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
    AppendTop(random, vocabulary, &targets.top);
    for (uint32_t i = 0; i < width; ++i) {
      targets.hidden.values.push_back(FloatToBf16(static_cast<float>(random.NextNormal())));
    }
  }
  return targets;
}

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

constexpr double kRowsPerStep = kDocuments * kRows;
constexpr int kWarmUpSteps = 2;  // memory is touched, oneDNN makes its primitives

std::vector<LossTerm> TermsOf(const std::string& mode) {
  const LossTerm a_tenth{LossKind::kCrossEntropy, 1, 0.1};
  if (mode == "sampled") return {{LossKind::kSampledKl, 1, 0.9}, a_tenth};
  if (mode == "topk64") return {{LossKind::kTopKl, 1, 0.9}, a_tenth};
  if (mode == "hidden_last") return {{LossKind::kExactKl, 1, 0.9}, a_tenth};
  return {{LossKind::kCrossEntropy}};
}

nlohmann::json Train(const std::string& mode, const ModelFiles& files, int steps,
                     Communicator& communicator) {
  const std::vector<LossTerm> terms = TermsOf(mode);
  StudentRecipe recipe;
  recipe.batch_tokens = 2048;
  recipe.micro_batch = 1024;
  recipe.steps = 1000;
  recipe.init.layers.resize(15);
  std::iota(recipe.init.layers.begin(), recipe.init.layers.end(), int64_t{0});
  const auto shape = ResolveShape(recipe, files.config, {});
  SH_CHECK_OK(shape);
  const int rank = communicator.rank(), ranks = communicator.size();
  StudentState student(shape->config, DType::kBF16, {.rank = rank, .ranks = ranks});
  SH_CHECK_OK(InitialiseMasters(*shape, *files.weights, 0, &student));
  const auto vocabulary = static_cast<uint32_t>(files.tokenizer->size());
  const auto width = static_cast<uint32_t>(files.config.hidden_size);
  StudentLossOptions loss{terms, vocabulary, {}};
  if (mode == "hidden_last") {
    const auto teacher = LoadDecoder(files, at::kBFloat16);
    SH_CHECK_OK(teacher);
    loss.teacher_head = teacher->head.clone();
  }
  auto model = mode == "autograd"
                   ? MakeAutogradStudent(shape->config, student.Weights(), loss)
                   : MakePlannedStudent(shape->config, student.Weights(), loss, recipe.micro_batch);
  SH_CHECK_OK(model);
  Zero2 zero2(student.plan, communicator, student.Shard());
  Stepper stepper(recipe, terms, **model, zero2);
  const BenchPlan plan(vocabulary);
  std::vector<uint32_t> numbers(kDocuments);
  std::iota(numbers.begin(), numbers.end(), 0u);
  const StepSplit split =
      SplitStep(plan, numbers, ranks, static_cast<uint64_t>(recipe.micro_batch), recipe.packing);
  std::vector<DocumentTargets> documents;
  for (const uint32_t number : split.documents[static_cast<size_t>(rank)]) {
    documents.push_back(Targets(number, vocabulary, width));
  }
  SH_CHECK_OK(zero2.PublishWeights(RunOnComputeThreads));
  SkippedSteps skipped;
  Clock::time_point start;
  for (int step = 1; step <= kWarmUpSteps + steps; ++step) {
    if (step == kWarmUpSteps + 1) start = Clock::now();
    SH_CHECK_OK(stepper.Step(plan, documents, split, static_cast<uint64_t>(step), &skipped,
                             [] { return absl::OkStatus(); }));
  }
  SH_CHECK_OK(zero2.AwaitAllWeights());
  const double seconds = SecondsSince(start);
  // Three products for each weight, and as many for each row's scores and mixture of values.
  const ModelConfig& config = shape->config;
  const double attention =
      2.0 * static_cast<double>(config.layers * config.heads * config.head_dim * kRows / 2);
  const double flops =
      6 * (static_cast<double>(config.ParameterCount()) + attention) * kRowsPerStep * steps;
  return {{"rows", kRowsPerStep * steps}, {"seconds", seconds}, {"flops", flops}};
}

nlohmann::json TeacherHead(const ModelFiles& files, int steps) {
  const auto bf16 = at::TensorOptions().dtype(at::kBFloat16);
  const at::Tensor head = at::randn({files.config.vocab_size, files.config.hidden_size}, bf16);
  const at::Tensor hidden = at::randn({1024, files.config.hidden_size}, bf16);
  at::Tensor logits = at::empty({1024, files.config.vocab_size}, bf16);
  ops::MatMulInto(logits, hidden, head.t());
  const Clock::time_point start = Clock::now();
  for (int step = 0; step < 2 * steps; ++step) ops::MatMulInto(logits, hidden, head.t());
  const double flops = 2.0 * static_cast<double>(head.numel()) * kRowsPerStep * steps;
  return {{"rows", kRowsPerStep * steps}, {"seconds", SecondsSince(start)}, {"flops", flops}};
}

nlohmann::json Peak(int steps) {
  const auto bf16 = at::TensorOptions().dtype(at::kBFloat16);
  double best = 0;
  for (const int64_t side : {1024, 2048, 4096}) {
    const at::Tensor a = at::randn({side, side}, bf16), b = at::randn({side, side}, bf16);
    at::Tensor out = at::empty({side, side}, bf16);
    ops::MatMulInto(out, a, b);
    // As long for each size.
    const int64_t times = steps * (4096 / side) * (4096 / side) * (4096 / side);
    const Clock::time_point start = Clock::now();
    for (int64_t i = 0; i < times; ++i) ops::MatMulInto(out, a, b);
    const double flops = 2.0 * static_cast<double>(side * side * side * times);
    best = std::max(best, flops / SecondsSince(start));
  }
  return {{"rows", 1}, {"seconds", 1.0}, {"flops", best}};
}

// Alone, or as one of mpirun's ranks.
nlohmann::json TrainOnAllRanks(const std::string& mode, const ModelFiles& files, int steps) {
  constexpr absl::Duration kDeadline = absl::Minutes(5);
  if (std::getenv("OMPI_COMM_WORLD_SIZE") == nullptr) {
    return Train(mode, files, steps, *MakeThreadCommunicators(1, kDeadline)[0]);
  }
  const auto world = MpiWorld::Init();
  SH_CHECK_OK(world);
  const auto communicator = (*world)->MakeCommunicator({.deadline = kDeadline});
  SH_CHECK_OK(communicator);
  nlohmann::json result = Train(mode, files, steps, **communicator);
  SH_CHECK_OK((*world)->Close(kDeadline));
  return (*world)->rank() == 0 ? result : nlohmann::json();
}

int Main(int argc, char** argv) {
  int steps = 0;
  if (argc != 4 || !absl::SimpleAtoi(argv[3], &steps) || steps < 1) {
    std::fprintf(stderr, "usage: student_step_bench MODE TEACHER STEPS\n");
    return 2;
  }
  // What LibTorch's products take and give back stays in the process.
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  const std::string mode = argv[1];
  nlohmann::json result;
  if (mode == "peak") {
    result = Peak(steps);
  } else {
    const auto files = OpenModelFiles(argv[2]);
    SH_CHECK_OK(files);
    result =
        mode == "teacher_head" ? TeacherHead(*files, steps) : TrainOnAllRanks(mode, *files, steps);
  }
  if (!result.is_null()) std::printf("%s\n", result.dump().c_str());
  return 0;
}

}  // namespace
}  // namespace stillhouse

int main(int argc, char** argv) { return stillhouse::Main(argc, argv); }

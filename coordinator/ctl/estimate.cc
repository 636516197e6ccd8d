#include "coordinator/ctl/estimate.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/file.h"
#include "coordinator/ctl/output.h"
#include "coordinator/limits.h"

namespace stillhouse {
namespace {

constexpr uint64_t kProcessBytes = 400ull
                                   << 20;  // libraries, threads, buffers of any torch process
constexpr uint64_t kBucketBytes =
    3ull * (25 << 20);                    // under way and begun, but for the embedding's
constexpr uint64_t kHeadChunkRows = 512;  // logits exist for so many rows at a time
constexpr double kTrainPerForward = 3;    // backward is two forwards

// Of one part besides its payload: keys, header, checksum, index entry.
constexpr uint64_t kPartOverheadMax = 160;
constexpr uint64_t kOriginBytesMax = 1024;  // of a chunk's section, in each segment it lies in
constexpr uint64_t kPlanBytesPerToken = 5;
constexpr uint64_t kPlanBytesPerDocument = 44;
constexpr uint64_t kChunksBeside = 2;  // besides the window: the first, and one being captured

uint64_t BytesOf(const std::string& dtype) { return dtype == "fp32" ? 4 : 2; }

// Parameters that take part in a product for each token: all but the embedding's lookup. A tied
// matrix is the head, so it stays.
double ProductParameters(const ModelConfig& config) {
  const double embedding = static_cast<double>(config.vocab_size) * config.hidden_size;
  return config.ParameterCount() - (config.tie_embeddings ? 0 : embedding);
}

// Floating-point operations of a forward pass over `tokens` in sequences of `length`.
double ForwardFlops(const ModelConfig& config, double tokens, double length) {
  const double attention = 2.0 * config.layers * length * config.heads * config.head_dim;
  return tokens * (2 * ProductParameters(config) + attention);
}

// Bytes of activations that one row keeps alive in one layer until its backward pass.
double ActivationBytes(const ModelConfig& config, uint64_t value_bytes) {
  const double attention = (2.0 * config.heads + 2.0 * config.kv_heads) * config.head_dim;
  return value_bytes * (4.0 * config.hidden_size + attention + 4.0 * config.intermediate_size);
}

uint64_t Rounded(double value) { return static_cast<uint64_t>(std::llround(std::max(0.0, value))); }

uint64_t AvailableMemory() {
  const auto text = ReadFile("/proc/meminfo", 1 << 20);
  if (!text.ok()) return 0;
  for (absl::string_view line : absl::StrSplit(*text, '\n')) {
    const std::vector<absl::string_view> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    uint64_t kib = 0;
    if (words.size() >= 2 && words[0] == "MemAvailable:" && absl::SimpleAtoi(words[1], &kib)) {
      return kib * 1024;
    }
  }
  return 0;
}

bool HasBf16Instructions() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

}  // namespace

double Machine::FlopsPerSecond(const std::string& dtype) const {
  const bool fast = dtype == "bf16" && bf16_instructions;
  return 1e9 * cores * (fast ? kGigaflopsPerCoreBf16 : kGigaflopsPerCoreFp32);
}

Machine ThisMachine() {
  Machine machine;
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) {
    machine.cores = std::max(1, CPU_COUNT(&allowed));
  }
  machine.bf16_instructions = HasBf16Instructions();
  machine.memory_bytes = AvailableMemory();
  return machine;
}

PlanSize MeasurePlan(const Plan& plan) {
  PlanSize size;
  size.training_rows = plan.training_rows();
  size.held_out_rows = plan.held_out_rows();
  for (uint32_t i = 0; i < plan.chunk_count(); ++i) {
    for (const PlanBatch& batch : plan.chunk(i).batches) {
      const uint64_t tokens = static_cast<uint64_t>(batch.end - batch.begin) * batch.length;
      size.padded_tokens += tokens;
      size.largest_batch = std::max(size.largest_batch, tokens);
    }
  }
  return size;
}

CaptureEstimate EstimateCapture(const Recipe& recipe, const ModelConfig& teacher,
                                const PlanSize& plan, const Machine& machine) {
  const uint64_t value_bytes = BytesOf(recipe.teacher.dtype);
  const double hidden_bytes = 2.0 * teacher.hidden_size;  // stored as bf16
  double row_bytes = kStatsBytesPerRow;
  if (recipe.capture.sampled_draws.has_value()) {
    row_bytes += kSampledBytesPerDraw * *recipe.capture.sampled_draws;
  }
  for (const TopRecipe& top : recipe.capture.top) {
    row_bytes += kTopBytesPerId * static_cast<double>(std::min(top.k, teacher.vocab_size));
  }
  if (recipe.capture.hidden_last) row_bytes += hidden_bytes;
  // int8 has a scale of two bytes for 64 channels.
  const double layer_bytes = recipe.capture.layers_int8 ? hidden_bytes * 33 / 64 : hidden_bytes;
  row_bytes += layer_bytes * static_cast<double>(recipe.capture.hidden_layers.size());
  CaptureEstimate estimate;
  estimate.teacher_tokens = plan.training_rows + plan.held_out_rows;
  estimate.cache_bytes = Rounded(plan.training_rows * row_bytes * kRecordOverhead);
  estimate.held_out_bytes =
      Rounded(plan.held_out_rows * (kStatsBytesPerRow + hidden_bytes) * kRecordOverhead);
  // The head, the final norm, and a tokenizer of about 50 bytes an id.
  estimate.artefact_bytes = static_cast<uint64_t>(teacher.vocab_size) *
                            (static_cast<uint64_t>(teacher.hidden_size) * value_bytes + 50);
  const double activations =
      ActivationBytes(teacher, value_bytes) * static_cast<double>(plan.largest_batch);
  estimate.memory_bytes = kProcessBytes + teacher.ParameterCount() * value_bytes +
                          Rounded(activations) + 2 * kHeadChunkRows * teacher.vocab_size * 4;
  estimate.seconds = ForwardFlops(teacher, static_cast<double>(plan.padded_tokens),
                                  static_cast<double>(recipe.dataset.max_tokens)) /
                     machine.FlopsPerSecond(recipe.teacher.dtype);
  return estimate;
}

StudentEstimate EstimateStudent(const Recipe& recipe, const StudentRecipe& student,
                                const ModelConfig& teacher, const PlanSize& plan,
                                const Machine& machine) {
  const uint64_t value_bytes = BytesOf(student.dtype);
  StudentEstimate estimate;
  estimate.config = teacher;
  if (!student.init.layers.empty()) {
    estimate.config.layers = static_cast<int64_t>(student.init.layers.size());
  } else if (student.init.keep.has_value()) {
    estimate.config.layers = *student.init.keep;
  }
  const ModelConfig& config = estimate.config;
  estimate.parameters = config.ParameterCount();
  estimate.rows = static_cast<uint64_t>(student.steps) * student.batch_tokens;
  if (plan.training_rows > 0) {
    estimate.epochs = static_cast<double>(estimate.rows) / static_cast<double>(plan.training_rows);
  }
  // Of each rank the weights; of all together gradients, masters and two moments (one fp32 rank
  // reads its masters), and for each of several some buckets (sharding/zero2.h).
  const auto ranks = static_cast<uint64_t>(student.ranks);
  const uint64_t weight_bytes = student.dtype == "fp32" && ranks == 1 ? 0 : value_bytes;
  const uint64_t state_bytes = estimate.parameters * (ranks * weight_bytes + 16);
  const uint64_t bucket_bytes =
      ranks == 1 ? 0 : kBucketBytes + 4ull * config.vocab_size * config.hidden_size;
  const double activations = ActivationBytes(config, value_bytes) * config.layers *
                             static_cast<double>(student.micro_batch);
  const uint64_t rows_at_once = std::min<uint64_t>(kHeadChunkRows, student.micro_batch);
  estimate.memory_bytes =
      state_bytes + ranks * (kProcessBytes + Rounded(activations) + bucket_bytes +
                             3 * rows_at_once * config.vocab_size * 4);
  estimate.export_bytes = estimate.parameters * value_bytes;
  // fp32 masters and two moments each. One more than are kept is there while it is written.
  const int64_t written =
      student.checkpoint_every > 0
          ? (student.steps + student.checkpoint_every - 1) / student.checkpoint_every
          : 1;
  estimate.checkpoint_bytes = estimate.parameters * 12 *
                              static_cast<uint64_t>(std::min(written, student.checkpoint_keep + 1));
  double flops = kTrainPerForward * ForwardFlops(config, static_cast<double>(estimate.rows),
                                                 static_cast<double>(recipe.dataset.max_tokens));
  const double head = 2.0 * teacher.vocab_size * teacher.hidden_size;
  for (const LossRecipe& loss : student.losses) {
    // The teacher's logits are rebuilt from its last hidden state.
    const bool rebuilt =
        loss.kind == LossRecipe::Kind::kKl && loss.targets == LossRecipe::Targets::kHiddenLast;
    if (rebuilt) flops += head * static_cast<double>(estimate.rows);
  }
  const int64_t evaluations =
      1 + (student.evaluate_every > 0 ? student.steps / student.evaluate_every : 0);
  flops += evaluations * static_cast<double>(plan.held_out_rows) *
           (ForwardFlops(config, 1, static_cast<double>(recipe.dataset.max_tokens)) + head);
  estimate.seconds = flops / machine.FlopsPerSecond(student.dtype);
  return estimate;
}

uint64_t ChunkBytesMax(const std::vector<SectionSpec>& sections, const Plan& plan, uint32_t chunk) {
  const PlanChunk planned = plan.chunk(chunk);
  uint64_t bytes = 0;
  for (const SectionSpec& spec : sections) {
    const uint64_t row_bytes = kPartBytesMax / spec.RowsPerPart();  // a part's rows fill it
    for (uint32_t d = planned.begin; d < planned.end; ++d) {
      const uint64_t rows = plan.document(d).rows();
      const uint64_t parts = (rows + spec.RowsPerPart() - 1) / spec.RowsPerPart();
      bytes += rows * row_bytes + parts * kPartOverheadMax;
    }
    bytes += kOriginBytesMax;
  }
  return bytes;
}

absl::Status CheckCacheRoom(const Recipe& recipe, const ModelConfig& teacher, const Plan& plan,
                            const std::vector<SectionSpec>& sections,
                            const std::vector<SectionSpec>& held_out_sections) {
  const uint64_t allowed = recipe.cache.bytes_max;
  if (allowed == 0) return absl::OkStatus();
  const PlanSize size = MeasurePlan(plan);
  const CaptureEstimate estimate = EstimateCapture(recipe, teacher, size, Machine());
  const uint64_t plan_bytes = (size.training_rows + size.held_out_rows) * kPlanBytesPerToken +
                              plan.document_count() * kPlanBytesPerDocument;
  const auto numbers = [](uint64_t bytes) {
    return absl::StrCat(HumanBytes(bytes), " (", bytes, " bytes)");
  };
  if (recipe.cache.retention == CacheRecipe::Retention::kKeep) {
    const uint64_t needed = estimate.TotalBytes() + plan_bytes;
    if (needed <= allowed) return absl::OkStatus();
    return absl::ResourceExhaustedError(
        absl::StrCat(recipe.path, ": cache.bytes_max: all that is captured takes about ",
                     numbers(needed), ", more than the ", numbers(allowed),
                     " allowed; raise it, capture less, or write \"retention: until_read\""));
  }
  uint64_t needed = estimate.artefact_bytes + plan_bytes;
  uint64_t largest = 0;
  for (uint32_t i = 0; i < plan.chunk_count(); ++i) {
    const bool held_out = plan.chunk(i).held_out;
    const uint64_t bytes = ChunkBytesMax(held_out ? held_out_sections : sections, plan, i);
    if (held_out) needed += bytes;
    if (!held_out) largest = std::max(largest, bytes);
  }
  const auto at_a_time = static_cast<uint64_t>(recipe.dataset.shuffle_window) + kChunksBeside;
  needed += largest * std::min<uint64_t>(at_a_time, plan.training_chunk_count());
  needed += needed / (kRewriteRoomShare - 1) + 1;  // what the coordinator leaves free
  if (needed <= allowed) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat(recipe.path, ": cache.bytes_max: until_read needs up to ", numbers(needed),
                   " for what is held out and ", at_a_time, " chunks at a time, more than the ",
                   numbers(allowed),
                   " allowed; raise it, or lower dataset.chunk_tokens or dataset.shuffle_window"));
}

absl::Status CheckRanks(const Recipe& recipe, const Plan& plan) {
  const uint32_t documents = plan.training_chunk_count() == plan.chunk_count()
                                 ? plan.document_count()
                                 : plan.chunk(plan.training_chunk_count()).begin;
  for (size_t i = 0; i < recipe.students.size(); ++i) {
    if (recipe.students[i].ranks <= static_cast<int64_t>(documents)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(recipe.path, ": students[", i, "].ranks: ", recipe.students[i].ranks,
                     " ranks, but the plan has only ", documents, " documents to train on"));
  }
  return absl::OkStatus();
}

absl::Status CheckAgainstTeacher(const Recipe& recipe, const ModelConfig& teacher) {
  const auto no_layer = [&](const std::string& where, int64_t layer) {
    return absl::InvalidArgumentError(absl::StrCat(recipe.path, ": ", where,
                                                   ": the teacher has no layer ", layer,
                                                   ", only 0 to ", teacher.layers - 1));
  };
  for (const int64_t layer : recipe.capture.hidden_layers) {
    if (layer >= teacher.layers) return no_layer("capture.hidden.layers", layer);
  }
  if (recipe.dataset.max_tokens > teacher.TokensMax()) {
    return absl::InvalidArgumentError(
        absl::StrCat(recipe.path, ": dataset.max_tokens: ", recipe.dataset.max_tokens,
                     " is more than the ", teacher.TokensMax(), " positions of the teacher"));
  }
  for (size_t i = 0; i < recipe.students.size(); ++i) {
    const StudentRecipe& student = recipe.students[i];
    const std::string where = absl::StrCat("students[", i, "].init.layers");
    const bool from_teacher = student.init.from == InitRecipe::From::kTeacher;
    if (from_teacher && student.init.keep.value_or(0) > teacher.layers) {
      return absl::InvalidArgumentError(absl::StrCat(
          recipe.path, ": ", where, ".keep: the teacher has only ", teacher.layers, " layers"));
    }
    for (const int64_t layer : student.init.layers) {
      if (layer >= teacher.layers) return no_layer(where, layer);
    }
  }
  return absl::OkStatus();
}

}  // namespace stillhouse

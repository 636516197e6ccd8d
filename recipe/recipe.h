// Recipe: what a user wants, as plain structs, read strictly from one YAML file.
//
// Every refusal is one line "PATH:LINE:COLUMN: key: what", with "did you mean …" where that helps:
// unknown, duplicate and mistyped keys, values out of range, keys of later versions (by name).
// Relative paths are resolved against the recipe's folder.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/digest.h"

namespace stillhouse {

inline constexpr size_t kStudentsMax = 64;

struct TeacherRecipe {
  std::string model;           // absolute path of a GGUF file or a Hugging Face folder
  std::string written;         // as the recipe has it: perhaps a hub id
  std::string dtype = "bf16";  // bf16 or fp32: of the forward pass
};

struct SourceRecipe {
  std::string path;    // a file or a glob, absolute
  std::string domain;  // "" is the domain "default"
};

struct DatasetRecipe {
  std::vector<SourceRecipe> sources;
  int64_t max_tokens = 512;
  enum class WhenLonger { kSplit, kRefuse } when_longer = WhenLonger::kSplit;
  double held_out = 0.05;
  int64_t shuffle_window = 8;
  int64_t chunk_tokens = 16384;
};

struct TopRecipe {
  int64_t k = 0;             // the most ids of a row
  int64_t p_millionths = 0;  // 0: top-k; else the probability at which a row ends
};

struct CaptureRecipe {
  std::optional<int64_t> sampled_draws;  // logits: {method: sampled, draws: N}
  std::vector<TopRecipe> top;            // logits: {method: topk, k: N} or {method: topp, p: X}
  bool hidden_last = false;              // hidden: {last: true}
  std::vector<int64_t> hidden_layers;    // hidden: {layers: [N, …], dtype: …}
  bool layers_int8 = false;
};

struct CacheRecipe {
  uint64_t bytes_max = 0;  // 0: no bound
  // kUntilRead: chunks that were read make room for others, and are captured again when they are
  // wanted again.
  enum class Retention { kKeep, kUntilRead } retention = Retention::kKeep;
};

struct InitRecipe {
  enum class From { kScratch, kTeacher } from = From::kTeacher;
  std::vector<int64_t> layers;  // layers: [0, 1, …]; else
  std::optional<int64_t> keep;  // layers: {keep: N, by: block_influence}
};

struct LossRecipe {
  enum class Kind { kKl, kCrossEntropy } kind = Kind::kKl;
  enum class Targets { kSampled, kHiddenLast, kTopK } targets = Targets::kSampled;  // of kKl
  double temperature = 1.0;  // the KL is multiplied by temperature²
  double weight = 1.0;
};

struct OptimizerRecipe {
  double lr = 5e-4;
  double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8;
  double weight_decay = 0.01;
  double warmup = 0.1;  // share of the steps
  enum class Schedule { kCosine, kConstant } schedule = Schedule::kCosine;
  double clip = 1.0;  // global norm; 0: none
};

struct StudentRecipe {
  std::string name;
  InitRecipe init;
  int64_t ranks = 1;
  std::string dtype = "bf16";
  int64_t batch_tokens = 2048;  // rows per optimizer step, over all ranks
  int64_t micro_batch = 1024;   // rows per forward and backward pass
  bool packing = true;
  std::vector<LossRecipe> losses;
  OptimizerRecipe optimizer;
  int64_t steps = 0;
  uint64_t seed = 0;
  int64_t evaluate_every = 0;         // 0: only at the end
  std::optional<int64_t> early_stop;  // evaluations without improvement
  int64_t checkpoint_every = 0;       // 0: only at the end
  int64_t checkpoint_keep = 2;
};

struct Recipe {
  std::string path;  // of the file
  std::string text;  // as read
  std::string name;
  TeacherRecipe teacher;
  DatasetRecipe dataset;
  CaptureRecipe capture;
  std::string cache_directory;
  CacheRecipe cache;
  std::string output;
  std::vector<StudentRecipe> students;
};

// InvalidArgument with the one line. Looks at no file: `path` names the recipe in messages, and its
// folder is what relative paths are resolved against.
absl::StatusOr<Recipe> ParseRecipe(absl::string_view text, const std::string& path);
absl::StatusOr<Recipe> ReadRecipe(const std::string& path);

// What lay behind the recipe's words when the run was submitted.
struct RunInputs {
  Digest plan;     // of the texts
  Digest teacher;  // its fingerprint
};

// "run/<recipe>/<student>"; the folder of a run ends in the first 8 digits of RunHash: a hash of
// what the recipe says of this student, of its teacher, dataset and capture, spelt canonically, and
// of what the texts and the teacher hold. Where the results go (cache, output) is no part of it,
// nor is the place of the recipe's folder.
std::string RunName(const Recipe& recipe, const StudentRecipe& student);
Digest RunHash(const Recipe& recipe, const StudentRecipe& student, const RunInputs& inputs);
// <output>/.runs/<student>-<hash8>
std::string RunFolder(const Recipe& recipe, const StudentRecipe& student, const RunInputs& inputs);

}  // namespace stillhouse

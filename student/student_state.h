// StudentState: the flat buffers of one student on one rank: the rank's shard of fp32 masters, Adam
// moments and gradients, and the weights of the whole student that the forward pass reads.
//
// Owner: the trainer. Not thread-safe. `2Ψ + 16Ψ/N` bytes for bf16 training of Ψ parameters on N
// ranks (sharding/zero2.h); an fp32 student has 4Ψ of weights instead, and on one rank none: it
// reads its masters.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/tensor_view.h"
#include "formats/model_config.h"
#include "formats/model_files.h"
#include "formats/weights.h"
#include "recipe/recipe.h"
#include "sharding/bucket_plan.h"
#include "sharding/flat_buffer.h"
#include "sharding/flat_layout.h"
#include "sharding/zero2.h"

namespace stillhouse {

// How a student's state is cut into shards.
struct ShardOptions {
  int rank = 0, ranks = 1;
  BucketOptions buckets;
};

struct StudentState {
  // All zero. `compute` is kBF16 or kF32.
  StudentState(const ModelConfig& config, DType compute, const ShardOptions& shard = {});

  const FlatLayout layout;
  const BucketPlan plan;
  const int rank;
  const std::vector<ShardPiece> pieces;  // what this rank's shard is of the whole

  FlatBuffer<float> masters, first, second, gradients;  // plan.ShardSize(rank) elements
  FlatBuffer<uint16_t> weights;                         // of a bf16 student: the whole
  FlatBuffer<float> wide_weights;  // of an fp32 student on several ranks: the whole

  // What the forward pass reads: the whole flat buffer.
  TensorView Weights();
  ShardBuffers Shard();
  // Makes this rank's part of the weights from its masters, as every update does. What other ranks
  // own has to be gathered (Zero2::PublishWeights).
  void RoundWeights();
};

// A student's shape and the teacher's layers that it starts from.
struct StudentShape {
  ModelConfig config;
  std::vector<int64_t> teacher_layers;  // layer i starts as teacher layer teacher_layers[i]; empty
                                        // from scratch
};

// The teacher's block influence: one number per layer, as the artefact's JSON
// {"influence": [...], "rows": n} holds them. DataLoss for anything else.
absl::StatusOr<std::vector<double>> ParseInfluence(absl::string_view json, int64_t teacher_layers);

// The `keep` layers of highest influence, ties to the lower index, ascending.
std::vector<int64_t> LayersOfHighestInfluence(absl::Span<const double> influence, int64_t keep);

// Whether ResolveShape needs the influence artefact.
bool NeedsInfluence(const InitRecipe& init);
// InvalidArgument for layers that the teacher lacks. `influence` may be empty unless needed.
absl::StatusOr<StudentShape> ResolveShape(const StudentRecipe& student, const ModelConfig& teacher,
                                          absl::Span<const double> influence);

// Fills this rank's masters: from the teacher's weights, or from scratch as transformers does it:
// matrices normal with deviation 0.02, norms one; a pure function of the seed and each parameter's
// name.
absl::Status InitialiseMasters(const StudentShape& shape, const Weights& teacher, uint64_t seed,
                               StudentState* state);

// Every parameter of the student for WriteHuggingFaceFolder, read from the weights, in their dtype.
// `state` must outlive the list's use.
std::vector<TensorToWrite> TensorsOf(const ModelConfig& config, StudentState& state);

}  // namespace stillhouse

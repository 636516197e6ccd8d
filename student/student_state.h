// StudentState: the flat buffers of one student: fp32 masters and Adam moments, fp32 gradients, and
// the bf16 weights that the forward pass reads (an fp32 student reads its masters).
//
// Owner: the trainer. Not thread-safe. `2Ψ + 16Ψ` bytes for bf16 training of Ψ parameters on one
// rank.
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
#include "sharding/flat_buffer.h"
#include "sharding/flat_layout.h"

namespace stillhouse {

struct StudentState {
  // All zero. `compute` is kBF16 or kF32.
  StudentState(const ModelConfig& config, DType compute);

  FlatLayout layout;
  FlatBuffer<float> masters, first, second, gradients;
  FlatBuffer<uint16_t> weights;  // empty for an fp32 student

  // What the forward pass reads.
  TensorView Weights();
  // Makes `weights` from the masters, as every update does.
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

// Fills the masters: from the teacher's weights, or from scratch as transformers does it: matrices
// normal with deviation 0.02, norms one; a pure function of the seed and each parameter's name.
absl::Status InitialiseMasters(const StudentShape& shape, const Weights& teacher, uint64_t seed,
                               StudentState* state);

// Every parameter of the student for WriteHuggingFaceFolder, read from the masters. `state` must
// outlive the list's use. dtype: "BF16" or "F32".
std::vector<TensorToWrite> TensorsOf(const ModelConfig& config, const StudentState& state,
                                     const std::string& dtype);

}  // namespace stillhouse

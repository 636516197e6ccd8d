// A two-layer student on flat buffers, drawn from a seed.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "formats/model_config.h"
#include "student/stepper.h"
#include "student/student_model.h"
#include "student/student_state.h"

namespace stillhouse {

ModelConfig SmallConfig(bool tied);
// The same as a "qwen2" with a window in its second layer, a "qwen3" with biases, a "mistral" with
// a window and YaRN, or a "llama" with dynamic RoPE past 8 tokens.
ModelConfig SmallVariant(const std::string& architecture);

// One rank of it; without a communicator the only one. Buckets are small.
struct SmallStudent {
  SmallStudent(std::vector<LossTerm> terms, const ModelConfig& config, DType compute,
               uint64_t seed = 3, Communicator* communicator = nullptr);
  // The same student with gradients planned by hand. `observer` as in MakePlannedStudent.
  std::unique_ptr<StudentModel> Planned(int64_t tokens_max, StepObserver* observer = nullptr);

  std::vector<std::unique_ptr<Communicator>> alone;
  std::unique_ptr<StudentState> state;
  std::unique_ptr<Zero2> zero2;
  StudentLossOptions loss;
  std::unique_ptr<StudentModel> model;  // gradients by autograd
};

// A recipe whose steps are small.
StudentRecipe SmallRecipe();

}  // namespace stillhouse

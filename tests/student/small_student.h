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
// The same as a "qwen2" with a window in its second layer, a "qwen3" with biases, or a "mistral"
// with a window and YaRN.
ModelConfig SmallVariant(const std::string& architecture);

struct SmallStudent {
  SmallStudent(std::vector<LossTerm> terms, const ModelConfig& config, DType compute,
               uint64_t seed = 3);
  // The same student with gradients planned by hand. `observer` as in MakePlannedStudent.
  std::unique_ptr<StudentModel> Planned(int64_t tokens_max, StepObserver* observer = nullptr);

  std::unique_ptr<StudentState> state;
  StudentLossOptions loss;
  std::unique_ptr<StudentModel> model;  // gradients by autograd
};

// A recipe whose steps are small.
StudentRecipe SmallRecipe();

}  // namespace stillhouse

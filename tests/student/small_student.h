// A two-layer student on flat buffers, drawn from a seed.
#pragma once

#include <memory>
#include <vector>

#include "formats/model_config.h"
#include "student/stepper.h"
#include "student/student_model.h"
#include "student/student_state.h"

namespace stillhouse {

ModelConfig SmallConfig(bool tied);

struct SmallStudent {
  SmallStudent(std::vector<LossTerm> terms, bool tied, DType compute, uint64_t seed = 3);
  std::unique_ptr<StudentState> state;
  std::unique_ptr<StudentModel> model;
};

// A recipe whose steps are small.
StudentRecipe SmallRecipe();

}  // namespace stillhouse

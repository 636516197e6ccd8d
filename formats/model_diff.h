// What two models differ in: architecture, tokenizer, tensors.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "formats/model_files.h"

namespace stillhouse {

// A key of config.json as we would write it, and the two values as JSON.
struct FieldDifference {
  std::string field, a, b;
};

std::vector<FieldDifference> DiffConfigs(const ModelConfig& a, const ModelConfig& b);

struct TensorDifference {
  std::string name;
  // "" where the model lacks the tensor.
  std::string dtype_a, dtype_b;
  std::vector<int64_t> shape_a, shape_b;
  // Of the values, decoded; all zero unless both have the tensor with one shape. A place where one
  // value is no finite number and the other is another is counted, and left out of the rest.
  int64_t count = 0;
  double max = 0;  // of |a - b|
  double sum_of_squares = 0;
  int64_t not_finite = 0;

  bool InBoth() const { return !dtype_a.empty() && !dtype_b.empty(); }
  bool Comparable() const { return InBoth() && shape_a == shape_b; }
  double Rms() const;
};

struct ModelDifference {
  std::vector<FieldDifference> architecture;
  std::string tokenizer;                  // the first difference in words; "" for none
  std::vector<TensorDifference> tensors;  // all: A's in their order, then those that only B has

  TensorDifference Overall() const;  // of the tensors that are comparable; without names
  // Whether nothing differs, but for values by at most `tolerance`.
  bool Same(double tolerance) const;
};

// Streams through both models: memory stays bounded. Stored dtypes are compared by their values.
absl::StatusOr<ModelDifference> DiffModels(const ModelFiles& a, const ModelFiles& b);

}  // namespace stillhouse

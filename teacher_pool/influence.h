// BlockInfluence: how much each layer turns the residual stream (Men et al. 2024, "ShortGPT"):
// 1 − cosine between a layer's input and output, the mean over rows. Layers with little of it can
// go.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ATen/core/Tensor.h"
#include "absl/types/span.h"

namespace stillhouse {

// Sums in fp64, row by row in order: the result does not depend on threads. Not thread-safe.
class BlockInfluence {
 public:
  explicit BlockInfluence(int64_t layers) : sums_(static_cast<size_t>(layers), 0.0) {}

  // Adds the rows of one forward pass: input, output [T, H], rows at `places`. REQUIRES: each layer
  // is added once per pass, layer 0 first.
  void Add(int64_t layer, const at::Tensor& input, const at::Tensor& output,
           absl::Span<const int64_t> places);

  uint64_t rows() const { return rows_; }
  std::vector<double> Mean() const;  // per layer; REQUIRES: rows() > 0
  std::string ToJson() const;        // {"influence": [per layer], "rows": n}

 private:
  std::vector<double> sums_;
  std::vector<double> row_values_;
  uint64_t rows_ = 0;
};

}  // namespace stillhouse

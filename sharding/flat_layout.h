// FlatLayout: where each parameter lies in one flat buffer, and which part of it a rank owns.
//
// Immutable and thread-safe. The order is the caller's: reverse order of use, so that the first
// gradients to be ready stand together, with a tied matrix last.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace stillhouse {

// Every parameter starts at a multiple of this many elements: 64 bytes of bf16, 128 of fp32, so
// that vector loads of either buffer are aligned.
inline constexpr size_t kFlatAlignment = 32;

struct FlatParameter {
  std::string name;
  size_t count = 0;   // elements
  size_t offset = 0;  // elements, a multiple of kFlatAlignment

  friend bool operator==(const FlatParameter&, const FlatParameter&) = default;
};

struct FlatRange {
  size_t begin = 0, end = 0;  // elements
  size_t size() const { return end - begin; }
};

class FlatLayout {
 public:
  FlatLayout() = default;
  // REQUIRES: names are distinct, counts are positive.
  explicit FlatLayout(const std::vector<std::pair<std::string, size_t>>& parameters);

  const std::vector<FlatParameter>& parameters() const { return parameters_; }
  const FlatParameter* Find(absl::string_view name) const;  // null if there is none
  size_t size() const { return size_; }                     // elements, padding included
  size_t parameter_count() const;                           // elements, padding left out

  // The contiguous part of the buffer that `rank` of `ranks` owns: a multiple of kFlatAlignment,
  // equal to within one such unit. The parts of all ranks cover the buffer. REQUIRES: 0 <= rank <
  // ranks.
  FlatRange ShardOf(int rank, int ranks) const;

 private:
  std::vector<FlatParameter> parameters_;
  size_t size_ = 0;
};

}  // namespace stillhouse

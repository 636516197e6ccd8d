// Loading the tensors of a model into memory of the caller's: in parallel, in blocks of rows, with
// some megabytes of extra memory whatever the size of the model.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "formats/weights.h"

namespace stillhouse {

// Values that a thread handles at once: 4 MiB of fp32.
inline constexpr int64_t kLoadBlockValues = 1 << 20;

struct LoadTarget {
  std::string name;
  std::string dtype;    // "F32", "BF16" or "F16"
  char* out = nullptr;  // Count() values; aligned for float if "F32"
};

struct LoadProgress {
  uint64_t bytes_done = 0;  // of the stored bytes
  uint64_t bytes_total = 0;
};
// Called after each block, by one thread at a time, with rising numbers; the last call has all.
using LoadProgressCall = std::function<void(const LoadProgress&)>;

// Fills every target. Values that are stored in the dtype asked for come bit by bit, others are
// rounded to nearest even. The pages of the file that were read are given back, so that resident
// memory grows by the targets alone. NotFound for an unknown name; OutOfRange for a value that a
// dtype does not hold, naming the tensor.
absl::Status LoadTensors(const Weights& weights, const std::vector<LoadTarget>& targets,
                         const LoadProgressCall& progress = nullptr);

// The rows from `first` on, in `dtype`, as many as fill `out`: what LoadTensors does for a block,
// without giving pages back. `scratch` is working memory that calls may share one after another.
absl::Status ReadRowsAs(const Weights& weights, absl::string_view name, int64_t first,
                        absl::string_view dtype, std::vector<float>& scratch, absl::Span<char> out);

// A run of whole rows of one tensor, of about kLoadBlockValues values (a row at least).
struct RowBlock {
  size_t tensor;  // in the list that it was made from
  int64_t first;
  int64_t rows;
};
std::vector<RowBlock> RowBlocksOf(const std::vector<const TensorInfo*>& tensors);

// Gives back what holds the rows of a block. Rows that are stored in another order than they are
// read in (GGUF's q and k) lie within the block's heads, not all in its own range: what is left of
// them goes with the neighbour's.
void GiveBackRows(const Weights& weights, const TensorInfo& tensor, const RowBlock& block);

}  // namespace stillhouse

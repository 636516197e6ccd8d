// Weights: the tensors of a model by their Hugging Face names, whatever file holds them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/file.h"

namespace stillhouse {

struct TensorInfo {
  std::string name;            // "model.layers.0.self_attn.q_proj.weight"
  std::string stored_dtype;    // "F32", "BF16", "Q4_1", …: as the file has it
  std::vector<int64_t> shape;  // row-major, outermost first (a linear weight is [out, in])
  int64_t Count() const;
  int64_t Rows() const { return shape.empty() ? 1 : shape.front(); }
};

// "[576, 192]", for messages.
std::string ShapeText(absl::Span<const int64_t> shape);

// What tells one state of a file from another without reading it.
struct FileIdentity {
  std::string path;  // absolute, symbolic links resolved
  uint64_t size = 0;
  uint64_t device = 0;
  uint64_t inode = 0;
  int64_t modified_ns = 0;  // since the epoch
  int64_t changed_ns = 0;

  friend bool operator==(const FileIdentity&, const FileIdentity&) = default;
};
absl::StatusOr<FileIdentity> IdentifyFile(const std::string& path);
// Maps `path` and identifies it; Aborted if it was replaced meanwhile.
absl::StatusOr<std::shared_ptr<const MappedFile>> MapIdentified(const std::string& path,
                                                                FileIdentity& identity);

// The bytes of one value of "F32", "BF16" or "F16"; 0 for any other.
size_t FloatBytes(absl::string_view dtype);
// `values` in one of the three, rounded to nearest even. OutOfRange for a number that is finite and
// would be infinite. REQUIRES: out.size() == values.size() * FloatBytes(dtype).
absl::Status EncodeFloats(absl::Span<const float> values, absl::string_view dtype,
                          absl::Span<char> out);
// OutOfRange with their number for values in `encoded`, F16 or BF16, that are not finite: what is
// written in a narrower dtype than it came in has to be numbers.
absl::Status CheckFinite(absl::Span<const char> encoded, absl::string_view dtype);

// Immutable and thread-safe once open; memory-mapped. Values come dequantised, and permuted to the
// Hugging Face layout where the file has another (GGUF's q and k of Llama).
class Weights {
 public:
  virtual ~Weights() = default;
  virtual const std::vector<TensorInfo>& tensors() const = 0;  // in a fixed order
  virtual const TensorInfo* Find(absl::string_view name) const = 0;
  // REQUIRES: out.size() == Find(name)->Count(). NotFound for an unknown name.
  absl::Status ReadF32(absl::string_view name, absl::Span<float> out) const {
    return ReadRowsF32(name, 0, out);
  }
  // The values of the rows from `first` on, as many as fill `out`. A row is all that stands under
  // one index of the first dimension: a row of a matrix, one value of a norm.
  // REQUIRES: whole rows that the tensor has.
  virtual absl::Status ReadRowsF32(absl::string_view name, int64_t first,
                                   absl::Span<float> out) const = 0;
  // The same rows as they are stored, bit by bit. REQUIRES: whole rows.
  virtual absl::Status CopyRows(absl::string_view name, int64_t first,
                                absl::Span<char> out) const = 0;
  // The bytes of the tensor as the file holds them (for fingerprints).
  virtual absl::StatusOr<absl::string_view> RawBytes(absl::string_view name) const = 0;
  // Lets go of the memory behind a part of RawBytes, which stays readable: what streams through a
  // model larger than memory calls it after each piece.
  virtual void GiveBack(absl::string_view) const {}
  // The files behind the maps as they were when opened; none for weights that lie in no file.
  virtual std::vector<FileIdentity> files() const { return {}; }
};

}  // namespace stillhouse

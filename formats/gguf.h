// GGUF (versions 2 and 3, little endian): the container of llama.cpp, read by memory map.
//
// The file is hostile input: every count and length is checked against the bytes that are there
// before anything is allocated, so memory stays proportional to the header actually present.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/byte_io.h"
#include "common/file.h"
#include "formats/weights.h"

namespace stillhouse {

inline constexpr uint64_t kGgufMetadataMax = 1 << 16;   // keys; real files have under 100
inline constexpr uint64_t kGgufTensorsMax = 1 << 17;    // real files have under 2,000
inline constexpr uint64_t kGgufNameBytesMax = 1 << 16;  // of a key or a tensor's name
inline constexpr uint32_t kGgufRankMax = 4;
inline constexpr int64_t kGgufPartsMax = 1024;  // each holds a file open by its map

enum class GgufType : uint32_t {  // of a metadata value
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

// A checked value; `bytes` lies in the file's map. For an array: `count` elements of `element`.
struct GgufValue {
  GgufType type = GgufType::kU8;
  absl::string_view bytes;  // of a string without its length; of an array the elements as stored
  GgufType element = GgufType::kU8;
  uint64_t count = 0;
};

// How a tensor's numbers are stored: blocks of `block` values in `bytes` bytes.
struct GgmlType {
  uint32_t number;  // in the file
  absl::string_view name;
  uint32_t block;
  uint32_t bytes;
};

// Null for one that we do not read.
const GgmlType* FindGgmlType(absl::string_view name);

struct GgufTensor {
  std::string name;
  const GgmlType* type = nullptr;  // F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K to Q6_K
  std::vector<int64_t> shape;      // row-major, outermost first (the file has them reversed)
  absl::string_view bytes;         // in the file's map
};

// Immutable and thread-safe once open. A model may be split into files NAME-00001-of-00003.gguf, of
// which the first has the metadata; opened together they are one GgufFile.
class GgufFile {
 public:
  // InvalidArgument "PATH: what" for a broken file, Unimplemented for a tensor type we lack (by
  // name), NotFound if it is not there.
  static absl::StatusOr<std::shared_ptr<const GgufFile>> Open(const std::string& path);
  // The same, with all other parts if `path` is a part of a split model. NotFound for a part that
  // is missing, InvalidArgument for parts that do not belong together: those of another count,
  // place or number of tensors, or with a tensor twice. (Parts of two models whose tensors have the
  // same names and shapes cannot be told apart: the format has no mark for it.)
  static absl::StatusOr<std::shared_ptr<const GgufFile>> OpenWhole(const std::string& path);

  const std::string& path() const { return file_->path(); }  // of the first part
  std::vector<FileIdentity> identities() const;              // of all parts
  // Lets go of the memory behind bytes that lie in a part's map; they stay readable.
  void GiveBack(absl::string_view bytes) const;
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const GgufTensor* FindTensor(absl::string_view name) const;

  // Metadata. A missing key gives nullopt, another type than asked InvalidArgument.
  bool Has(absl::string_view key) const { return metadata_.contains(key); }
  absl::StatusOr<std::optional<int64_t>> Int(absl::string_view key) const;  // any integer type
  absl::StatusOr<std::optional<double>> Number(absl::string_view key) const;
  absl::StatusOr<std::optional<bool>> Bool(absl::string_view key) const;
  absl::StatusOr<std::optional<absl::string_view>> String(absl::string_view key) const;
  absl::StatusOr<std::vector<absl::string_view>> Strings(absl::string_view key) const;  // or empty
  absl::StatusOr<std::vector<int64_t>> Ints(absl::string_view key) const;               // or empty
  absl::StatusOr<std::vector<double>> Numbers(absl::string_view key) const;             // or empty

 private:
  GgufFile() = default;
  absl::Status Join(std::vector<std::shared_ptr<const GgufFile>> others, int64_t tensors);
  absl::Status Parse();
  absl::Status ParseMetadata(ByteReader& reader, uint64_t count);
  absl::Status ParseTensors(ByteReader& reader, uint64_t count);
  absl::Status ParseTensor(ByteReader& reader, GgufTensor& tensor, uint64_t& offset);
  const GgufValue* Find(absl::string_view key) const;

  std::shared_ptr<const MappedFile> file_;
  FileIdentity identity_;
  absl::flat_hash_map<absl::string_view, GgufValue> metadata_;  // keys lie in the map
  std::vector<GgufTensor> tensors_;
  absl::flat_hash_map<std::string, size_t> tensor_index_;
  std::vector<std::shared_ptr<const GgufFile>> others_;  // parts after the first
};

// The first part of the split model in a folder; "" where none is split, InvalidArgument where
// there are parts of several.
absl::StatusOr<std::string> FindSplitGguf(const std::string& folder);

// REQUIRES: `bytes` holds exactly out.size() values of `type`, a whole number of blocks.
void GgmlDecode(const GgmlType& type, absl::string_view bytes, absl::Span<float> out);

}  // namespace stillhouse

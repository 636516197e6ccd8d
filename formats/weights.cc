#include "formats/weights.h"

#include <sys/stat.h>

#include <bit>
#include <climits>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_join.h"
#include "common/status.h"
#include "common/tensor_view.h"
#include "formats/float_codec.h"

namespace stillhouse {
namespace {

constexpr uint16_t kBf16Infinity = 0x7f80;
constexpr uint16_t kHalfInfinity = 0x7c00;

// How many finite values became `infinity`. A plain loop, for the vectoriser.
template <uint16_t (*encode)(float), uint16_t infinity>
uint32_t EncodeAll(absl::Span<const float> values, char* out) {
  uint32_t overflows = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t bits = encode(values[i]);
    const bool finite = (std::bit_cast<uint32_t>(values[i]) & 0x7f800000u) != 0x7f800000u;
    overflows += static_cast<uint32_t>(finite) & static_cast<uint32_t>((bits & 0x7fff) == infinity);
    std::memcpy(out + 2 * i, &bits, sizeof(bits));
  }
  return overflows;
}

}  // namespace

int64_t TensorInfo::Count() const {
  int64_t count = 1;
  for (const int64_t dimension : shape) count *= dimension;
  return count;
}

std::string ShapeText(absl::Span<const int64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

size_t FloatBytes(absl::string_view dtype) {
  if (dtype == "F32") return 4;
  return dtype == "BF16" || dtype == "F16" ? 2 : 0;
}

absl::Status EncodeFloats(absl::Span<const float> values, absl::string_view dtype,
                          absl::Span<char> out) {
  SH_CHECK(FloatBytes(dtype) != 0 && out.size() == values.size() * FloatBytes(dtype), dtype);
  if (dtype == "F32") {
    if (!values.empty()) std::memcpy(out.data(), values.data(), out.size());
    return absl::OkStatus();
  }
  const uint32_t overflows = dtype == "BF16"
                                 ? EncodeAll<FloatToBf16, kBf16Infinity>(values, out.data())
                                 : EncodeAll<FloatToHalf, kHalfInfinity>(values, out.data());
  if (overflows == 0) return absl::OkStatus();
  return absl::OutOfRangeError(
      absl::StrCat(overflows, overflows == 1 ? " value is" : " values are", " too large for ",
                   dtype, dtype == "F16" ? " (at most 65504)" : "", ": take another dtype"));
}

absl::Status CheckFinite(absl::Span<const char> encoded, absl::string_view dtype) {
  SH_CHECK(FloatBytes(dtype) == 2, dtype);
  const uint16_t infinity = dtype == "BF16" ? kBf16Infinity : kHalfInfinity;
  uint32_t count = 0;
  for (size_t at = 0; at + 2 <= encoded.size(); at += 2) {
    uint16_t bits = 0;
    std::memcpy(&bits, encoded.data() + at, sizeof(bits));
    count += static_cast<uint32_t>((bits & infinity) == infinity);
  }
  if (count == 0) return absl::OkStatus();
  return absl::OutOfRangeError(absl::StrCat(
      count, count == 1 ? " value is" : " values are",
      " NaN or infinite: only F32, or the dtype that they are stored in, keeps them as they are"));
}

absl::StatusOr<FileIdentity> IdentifyFile(const std::string& path) {
  struct stat info {};
  char* resolved = ::realpath(path.c_str(), nullptr);
  if (resolved == nullptr) return ErrnoStatus("opening", path);
  FileIdentity identity;
  identity.path = resolved;
  ::free(resolved);
  if (::stat(identity.path.c_str(), &info) != 0) return ErrnoStatus("opening", path);
  identity.size = static_cast<uint64_t>(info.st_size);
  identity.device = info.st_dev;
  identity.inode = info.st_ino;
  identity.modified_ns = info.st_mtim.tv_sec * 1'000'000'000 + info.st_mtim.tv_nsec;
  identity.changed_ns = info.st_ctim.tv_sec * 1'000'000'000 + info.st_ctim.tv_nsec;
  return identity;
}

absl::StatusOr<std::shared_ptr<const MappedFile>> MapIdentified(const std::string& path,
                                                                FileIdentity& identity) {
  SH_ASSIGN_OR_RETURN(identity, IdentifyFile(path));
  SH_ASSIGN_OR_RETURN(std::shared_ptr<const MappedFile> file, MappedFile::Open(path));
  SH_ASSIGN_OR_RETURN(const FileIdentity after, IdentifyFile(path));
  if (!(identity == after) || file->bytes().size() != identity.size) {
    return absl::AbortedError(absl::StrCat(path, " was replaced while it was being opened"));
  }
  return file;
}

}  // namespace stillhouse

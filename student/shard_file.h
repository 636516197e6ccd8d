// The file in which one rank of a checkpoint keeps its shard: rank-<r>-of-<n>.state.
//
//   "SHSTATE2" elements:u64 ranges:u64 values:u64      zeros to 64 bytes
//   ranges x (begin:u64 end:u64)                       zeros to a multiple of 64
//   masters, first and second moments                  each values x f32
//
// `elements` is the length of the whole flat buffer, the ranges are what of it the file holds,
// ascending, `values` elements in all; little endian. Version 1, of one rank alone, is read too:
// "SHSTATE1" elements:u64 begin:u64 end:u64, zeros to 64 bytes, then the three runs.
// Which ranges a rank has is no promise: a reader takes what it needs from whatever files hold it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/digest.h"
#include "common/file.h"
#include "sharding/bucket_plan.h"
#include "student/student_state.h"

namespace stillhouse {

std::string ShardName(int rank, int ranks);

// What a manifest says of a file.
struct StoredFile {
  std::string name;
  uint64_t bytes = 0;
  std::string sha256;  // hexadecimal
};

// Writes text or a shard into `folder`, synced. AlreadyExists when the file is there.
absl::StatusOr<StoredFile> WriteTextFile(const std::string& folder, const std::string& name,
                                         absl::string_view text);
absl::StatusOr<StoredFile> WriteShardFile(const std::string& folder, int ranks,
                                          const StudentState& state);

// A file to read from; its bytes are trusted only once Verify has said so.
class ShardFile {
 public:
  // DataLoss, naming the file, when it has not the size that `stored` says, or its head is not
  // possible for a flat buffer of `elements`.
  static absl::StatusOr<ShardFile> Open(const std::string& folder, const StoredFile& stored,
                                        size_t elements);

  const std::vector<ShardPiece>& pieces() const { return pieces_; }
  bool Overlaps(const StudentState& state) const;
  absl::Status Verify()
      const;  // DataLoss, naming the file, unless its hash is that of the manifest
  void CopyInto(StudentState& state) const;  // what the two have in common

 private:
  absl::Status ReadHead(size_t elements);

  std::string path_, sha256_;
  std::shared_ptr<const MappedFile> map_;
  std::vector<ShardPiece> pieces_;
  size_t values_ = 0;
  size_t data_begin_ = 0;  // in bytes
};

}  // namespace stillhouse

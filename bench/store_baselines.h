// What the cache is compared with: a flat file, and LMDB. Neither checks what it reads.
//
// Not thread-safe. Errors are fatal: a benchmark has nobody to tell.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

struct MDB_env;

namespace stillhouse {

// Appends to one file, made anew.
class FlatFile {
 public:
  explicit FlatFile(const std::string& path);
  ~FlatFile();
  FlatFile(const FlatFile&) = delete;
  FlatFile& operator=(const FlatFile&) = delete;
  void Append(absl::string_view bytes);
  void Sync();  // fdatasync

 private:
  int fd_;
};

class Lmdb {
 public:
  // `readahead` is LMDB's default; without it, MDB_NORDAHEAD.
  Lmdb(const std::string& folder, bool write, bool readahead);
  ~Lmdb();
  Lmdb(const Lmdb&) = delete;
  Lmdb& operator=(const Lmdb&) = delete;
  // Keys ascend from call to call. One synced transaction.
  void Append(const std::vector<uint64_t>& keys, const std::vector<absl::string_view>& values);
  // Reads each, in place: the sum of its 64-bit words, and how many bytes they were.
  struct Sum {
    uint64_t words = 0;
    uint64_t bytes = 0;
  };
  Sum Read(const std::vector<uint64_t>& keys);

 private:
  MDB_env* env_ = nullptr;
  unsigned table_ = 0;
};

}  // namespace stillhouse

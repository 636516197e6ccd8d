#include "bench/store_baselines.h"

#include <fcntl.h>
#include <lmdb.h>
#include <unistd.h>

#include <cstring>

#include "common/file.h"
#include "common/status.h"

namespace stillhouse {
namespace {

constexpr size_t kMapBytes = 64ull << 30;  // address space

void CheckLmdb(int code, const char* action) {
  SH_CHECK(code == MDB_SUCCESS, action, ": ", mdb_strerror(code));
}

// Big endian, so that LMDB's order is that of the numbers.
std::string KeyBytes(uint64_t key) {
  key = __builtin_bswap64(key);
  return std::string(reinterpret_cast<const char*>(&key), sizeof(key));
}

uint64_t SumOfWords(const MDB_val& value) {
  const char* bytes = static_cast<const char*>(value.mv_data);
  uint64_t sums[4] = {0, 0, 0, 0};
  for (size_t i = 0; i + 32 <= value.mv_size; i += 32) {
    uint64_t words[4];
    std::memcpy(words, bytes + i, sizeof(words));
    for (int w = 0; w < 4; ++w) sums[w] += words[w];
  }
  return sums[0] + sums[1] + sums[2] + sums[3];
}

}  // namespace

FlatFile::FlatFile(const std::string& path)
    : fd_(open(path.c_str(), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600)) {
  SH_CHECK(fd_ >= 0, "creating ", path);
}
FlatFile::~FlatFile() { close(fd_); }

void FlatFile::Append(absl::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(fd_, bytes.data(), bytes.size());
    SH_CHECK(written > 0, "writing the flat file, errno ", errno);
    bytes.remove_prefix(static_cast<size_t>(written));
  }
}
void FlatFile::Sync() { SH_CHECK(fdatasync(fd_) == 0, "syncing the flat file"); }

Lmdb::Lmdb(const std::string& folder, bool write, bool readahead) {
  SH_CHECK_OK(MakeFolders(folder));
  CheckLmdb(mdb_env_create(&env_), "mdb_env_create");
  CheckLmdb(mdb_env_set_mapsize(env_, kMapBytes), "mdb_env_set_mapsize");
  const unsigned flags = (write ? 0 : MDB_RDONLY) | (readahead ? 0 : MDB_NORDAHEAD);
  CheckLmdb(mdb_env_open(env_, folder.c_str(), flags, 0600), "mdb_env_open");
  MDB_txn* txn = nullptr;
  CheckLmdb(mdb_txn_begin(env_, nullptr, write ? 0 : MDB_RDONLY, &txn), "mdb_txn_begin");
  CheckLmdb(mdb_dbi_open(txn, nullptr, 0, &table_), "mdb_dbi_open");
  CheckLmdb(mdb_txn_commit(txn), "mdb_txn_commit");
}
Lmdb::~Lmdb() { mdb_env_close(env_); }

void Lmdb::Append(const std::vector<uint64_t>& keys, const std::vector<absl::string_view>& values) {
  MDB_txn* txn = nullptr;
  CheckLmdb(mdb_txn_begin(env_, nullptr, 0, &txn), "mdb_txn_begin");
  for (size_t i = 0; i < keys.size(); ++i) {
    std::string key = KeyBytes(keys[i]);
    MDB_val name{key.size(), key.data()};
    MDB_val value{values[i].size(), const_cast<char*>(values[i].data())};
    CheckLmdb(mdb_put(txn, table_, &name, &value, MDB_APPEND), "mdb_put");
  }
  CheckLmdb(mdb_txn_commit(txn), "mdb_txn_commit");
}

Lmdb::Sum Lmdb::Read(const std::vector<uint64_t>& keys) {
  Sum sum;
  MDB_txn* txn = nullptr;
  CheckLmdb(mdb_txn_begin(env_, nullptr, MDB_RDONLY, &txn), "mdb_txn_begin");
  for (const uint64_t number : keys) {
    std::string key = KeyBytes(number);
    MDB_val name{key.size(), key.data()}, value{};
    CheckLmdb(mdb_get(txn, table_, &name, &value), "mdb_get");
    sum.words += SumOfWords(value);
    sum.bytes += value.mv_size;
  }
  mdb_txn_abort(txn);
  return sum;
}

}  // namespace stillhouse

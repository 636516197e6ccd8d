#include "storage/rocks_tables.h"

#include <rocksdb/iterator.h>
#include <rocksdb/options.h>
#include <rocksdb/sst_file_reader.h>
#include <rocksdb/sst_file_writer.h>
#include <rocksdb/table.h>
#include <rocksdb/table_properties.h>
#include <sys/stat.h>

#include <algorithm>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "common/file.h"
#include "common/status.h"
#include "storage/rocks_internal.h"
#include "storage/rocks_status.h"

namespace stillhouse {
namespace {

// What RocksDB notes in every table that an SstFileWriter wrote.
constexpr char kIngestedProperty[] = "rocksdb.external_sst_file.version";

rocksdb::Options ReaderOptions() {
  rocksdb::Options options;
  options.info_log = MakeNoLog();
  rocksdb::BlockBasedTableOptions table;
  table.no_block_cache = true;
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return options;
}

uint64_t NumberOf(const std::string& name) {
  uint64_t number = 0;
  const size_t dash = name.rfind('-');
  const std::string digits = name.substr(dash == std::string::npos ? 0 : dash + 1);
  return absl::SimpleAtoi(digits.substr(0, digits.find('.')), &number) ? number : 0;
}

absl::Status Check(TableFile* table) {
  rocksdb::SstFileReader reader(ReaderOptions());
  SH_RETURN_IF_ERROR(ToAbsl(reader.Open(table->path), "opening"));
  const auto properties = reader.GetTableProperties();
  if (properties == nullptr) return absl::DataLossError("its properties cannot be read");
  table->family = properties->column_family_name;
  table->family_id = properties->column_family_id;
  table->entries = properties->num_entries;
  table->ingested = properties->user_collected_properties.contains(kIngestedProperty);
  SH_RETURN_IF_ERROR(ToAbsl(reader.VerifyChecksum(), "verifying"));
  const std::unique_ptr<rocksdb::Iterator> it(reader.NewIterator(rocksdb::ReadOptions()));
  it->SeekToFirst();
  if (it->Valid()) table->first_key = it->key().ToString();
  it->SeekToLast();
  if (it->Valid()) table->last_key = it->key().ToString();
  return ToAbsl(it->status(), "reading");
}

}  // namespace

TableFile CheckTable(const std::string& path) {
  TableFile table;
  table.path = path;
  const absl::Status status = Check(&table);
  if (!status.ok()) {
    table.damage = absl::DataLossError(absl::StrCat(BaseName(path), ": ", status.message()));
  }
  return table;
}

absl::Status ScanTable(const std::string& path, const VisitEntry& visit) {
  rocksdb::SstFileReader reader(ReaderOptions());
  if (!reader.Open(path).ok()) return absl::OkStatus();
  // Blocks are parsed only when they match their checksum: RocksDB's parser believes what it reads.
  const std::unique_ptr<rocksdb::Iterator> it(reader.NewIterator(rocksdb::ReadOptions()));
  for (it->SeekToFirst(); it->Valid(); it->Next()) {
    SH_RETURN_IF_ERROR(
        visit({it->key().data(), it->key().size()}, {it->value().data(), it->value().size()}));
  }
  return absl::OkStatus();
}

std::optional<std::string> FindInTable(const std::string& path, absl::string_view key) {
  rocksdb::SstFileReader reader(ReaderOptions());
  if (!reader.Open(path).ok()) return std::nullopt;
  // Blocks are parsed only when they match their checksum: RocksDB's parser believes what it reads.
  const std::unique_ptr<rocksdb::Iterator> it(reader.NewIterator(rocksdb::ReadOptions()));
  const rocksdb::Slice wanted(key.data(), key.size());
  it->Seek(wanted);
  if (!it->Valid() || it->key() != wanted) return std::nullopt;
  return it->value().ToString();
}

struct TableWriter::Impl {
  rocksdb::SstFileWriter writer{rocksdb::EnvOptions(), ReaderOptions()};
};

TableWriter::TableWriter(std::string path) : path_(std::move(path)) {}
TableWriter::~TableWriter() = default;

absl::Status TableWriter::Add(absl::string_view key, absl::string_view value) {
  const std::string action = absl::StrCat("writing ", path_);
  if (impl_ == nullptr) {
    impl_ = std::make_unique<Impl>();
    SH_RETURN_IF_ERROR(ToAbsl(impl_->writer.Open(path_), action));
  }
  return ToAbsl(impl_->writer.Put({key.data(), key.size()}, {value.data(), value.size()}), action);
}

absl::Status TableWriter::Finish() {
  if (impl_ == nullptr) return absl::OkStatus();
  return ToAbsl(impl_->writer.Finish(), absl::StrCat("writing ", path_));
}

absl::StatusOr<std::vector<std::string>> ListTables(const std::string& folder) {
  SH_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(folder));
  std::vector<std::string> tables;
  for (const std::string& name : names) {
    const std::string path = JoinPath(folder, name);
    struct stat info {};
    const bool file = stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode);
    if (file && absl::EndsWith(name, ".sst")) tables.push_back(path);
  }
  std::stable_sort(tables.begin(), tables.end(), [](const std::string& a, const std::string& b) {
    return NumberOf(BaseName(a)) < NumberOf(BaseName(b));
  });
  return tables;
}

}  // namespace stillhouse

// One timed run over a store, of ours or of a baseline; tools/bench.py alternates them and makes
// the ratios. Prints one line of JSON: {"bytes", "seconds"}, and what else the run has to say.
//
//   fill-cache, fill-lmdb, fill-flat      make a data set of --records records in --dir
//   fill-ingested                         a file of its own for every record, past the cache
//   read-cache, read-lmdb                 --count shuffled records
//   read-client                           the same through a cache server at --address
//   ingest-cache, ingest-flat             durable puts of --records records
//   open-cache                            opening a cache for reading, then for writing
//   fill-rows                             a cache of what a teacher said, for its bytes a token
#include <malloc.h>
#include <sys/resource.h>

#include <atomic>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/match.h"
#include "bench/store_baselines.h"
#include "bench/store_data.h"
#include "bench/teacher_rows.h"
#include "common/blocking.h"
#include "common/clock.h"
#include "common/command_line.h"
#include "common/event_loop.h"
#include "common/file.h"
#include "common/log.h"
#include "common/mutex.h"
#include "common/status.h"
#include "storage/async_store.h"
#include "storage/cache_directory.h"
#include "storage/codec.h"
#include "storage/record.h"
#include "storage/service/cache_client.h"
#include "transport/rpc.h"
#include "transport/zmq_channel.h"

namespace stillhouse {
namespace {

constexpr uint64_t kGroupBytes = kPutGroupBytesMax;   // of one sync, ours and the flat file's
constexpr uint64_t kInFlightBytesMax = 512ull << 20;  // of puts not acknowledged: 8 workers'
constexpr uint64_t kAnyBytes = 1ull << 40;
constexpr int kReadThreads = 2;
constexpr int kReadsInFlight = 4;  // of a client, as a student's

struct Options {
  std::string mode, dir, address;
  StoreData data{.records = 1365, .record_bytes = 768 << 10};
  uint64_t count = 0;  // records to read
  uint64_t first = 0;  // the first to write
  uint64_t seed = 1;
  int batch = 16;  // records of one read
  int put = 1;     // records of one put
  bool readahead = true;
  bool owned = false;
  bool stats = false;
};

using Clock = std::chrono::steady_clock;
double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::unique_ptr<CacheDirectory> OpenCache(const Options& options, bool read_only) {
  auto cache = CacheDirectory::Open({.path = options.dir, .read_only = read_only});
  SH_CHECK_OK(cache);
  return *std::move(cache);
}

// Groups of records whose payloads have about kGroupBytes.
template <typename Write>
void ForGroups(const Options& options, Write write) {
  std::vector<PutItem> items;
  uint64_t bytes = 0;
  for (uint64_t i = 0; i < options.data.records; ++i) {
    items.push_back(options.data.Item(options.first + i));
    bytes += options.data.PayloadBytes();
    if (bytes + options.data.PayloadBytes() <= kGroupBytes && i + 1 < options.data.records) {
      continue;
    }
    write(items);
    items.clear();
    bytes = 0;
  }
}

nlohmann::json FillCache(const Options& options) {
  const auto cache = OpenCache(options, /*read_only=*/false);
  ForGroups(options,
            [&](const std::vector<PutItem>& items) { SH_CHECK_OK(cache->sections().Put(items)); });
  SH_CHECK_OK(cache->Close());
  return {};
}

nlohmann::json FillLmdb(const Options& options) {
  Lmdb lmdb(options.dir, /*write=*/true, /*readahead=*/true);
  uint64_t next = 0;
  ForGroups(options, [&](const std::vector<PutItem>& items) {
    std::vector<uint64_t> keys;
    std::vector<absl::string_view> values;
    for (const PutItem& item : items) {
      keys.push_back(next++);
      values.push_back(item.parts[0].payload);
    }
    lmdb.Append(keys, values);
  });
  return {};
}

// Without the byte that names the codec, so that records lie at multiples of record_bytes.
nlohmann::json FillFlat(const Options& options) {
  FlatFile file(options.dir);
  ForGroups(options, [&](const std::vector<PutItem>& items) {
    for (const PutItem& item : items) {
      file.Append(absl::string_view(item.parts[0].payload).substr(1));
    }
    file.Sync();
  });
  return {};
}

// As a cache would look whose every put went into a file of its own.
nlohmann::json FillIngested(const Options& options) {
  const auto cache = OpenCache(options, /*read_only=*/false);
  KvStore& store = cache->sections().store();
  const auto start = Clock::now();
  for (uint64_t i = 0; i < options.data.records; ++i) {
    const PutItem item = options.data.Item(options.first + i);
    const Part& part = item.parts[0];
    auto file = store.NewSortedFile(kCacheData);
    SH_CHECK_OK(file);
    SH_CHECK_OK((*file)->Add(PlaceKey({i + 1, 0}), EncodeOriginRecord(item.provenance)));
    SH_CHECK_OK((*file)->Add(PlaceKey({i + 1, 1}),
                             EncodePartRecord({.key = part.key,
                                               .row_count = part.row_count,
                                               .codec = static_cast<uint8_t>(part.payload[0]),
                                               .payload = part.payload})));
    SH_CHECK_OK(store.Ingest(*std::move(file)));
  }
  const double seconds = SecondsSince(start);
  SH_CHECK_OK(cache->Close());
  return {{"seconds", seconds}, {"bytes", options.data.records * options.data.PayloadBytes()}};
}

std::vector<std::vector<PartKey>> ReadBatches(const Options& options) {
  const std::vector<uint64_t> order = StoreData::Shuffled(options.data.records, options.seed);
  std::vector<std::vector<PartKey>> batches;
  for (uint64_t i = 0; i < options.count; ++i) {
    if (i % static_cast<uint64_t>(options.batch) == 0) batches.emplace_back();
    batches.back().push_back(options.data.Key(order[i % order.size()]));
  }
  return batches;
}

nlohmann::json ReadCache(const Options& options) {
  const auto cache = OpenCache(options, /*read_only=*/true);
  const auto batches = ReadBatches(options);
  uint64_t bytes = 0;
  const auto start = Clock::now();
  for (const std::vector<PartKey>& keys : batches) {
    if (options.owned) {
      const auto parts = cache->sections().Get(keys, kAnyBytes);
      SH_CHECK_OK(parts);
      for (const std::optional<Part>& part : *parts) bytes += part->payload.size();
      continue;
    }
    SH_CHECK_OK(cache->sections().Visit(keys, kAnyBytes, [&](size_t, const PartView& part) {
      bytes += part.payload.size();
      return absl::OkStatus();
    }));
  }
  const double seconds = SecondsSince(start);
  SH_CHECK(bytes == options.count * options.data.PayloadBytes(), "records are missing");
  return {{"seconds", seconds}, {"bytes", bytes}};
}

nlohmann::json ReadLmdb(const Options& options) {
  Lmdb lmdb(options.dir, /*write=*/false, options.readahead);
  std::vector<uint64_t> order = StoreData::Shuffled(options.data.records, options.seed);
  order.resize(options.count);
  const auto start = Clock::now();
  const Lmdb::Sum sum = lmdb.Read(order);
  return {{"seconds", SecondsSince(start)}, {"bytes", sum.bytes}, {"sum", sum.words}};
}

nlohmann::json ReadClient(const Options& options) {
  EventLoop loop;
  auto channel = MakeZmqClientChannel(loop, options.address);
  SH_CHECK_OK(channel);
  auto rpc = MakeRpcClient(**channel, loop);
  auto client = MakeCacheClient(*rpc);
  std::thread thread([&] { loop.Run(); });
  const auto batches = ReadBatches(options);
  std::atomic<size_t> next{0};     // batch
  std::atomic<uint64_t> bytes{0};  // of all readers
  const auto start = Clock::now();
  std::vector<std::thread> readers;
  for (int r = 0; r < kReadsInFlight; ++r) {
    readers.emplace_back([&] {
      for (size_t b = next++; b < batches.size(); b = next++) {
        const auto parts = CallAndWait<std::vector<std::optional<Part>>>(
            loop, [&](auto done) { client->Get(batches[b], std::move(done)); });
        SH_CHECK_OK(parts);
        for (const std::optional<Part>& part : *parts) bytes += part->payload.size();
      }
    });
  }
  for (std::thread& reader : readers) reader.join();
  const double seconds = SecondsSince(start);
  loop.Stop();
  thread.join();
  SH_CHECK(bytes == options.count * options.data.PayloadBytes(), "records are missing");
  return {{"seconds", seconds}, {"bytes", bytes.load()}};
}

// Puts as a server takes them: checked and grouped by the store's threads, each acknowledged once
// it is durable.
nlohmann::json IngestCache(const Options& options) {
  const auto cache = OpenCache(options, /*read_only=*/false);
  EventLoop loop;
  std::thread thread([&] { loop.Run(); });
  Mutex mutex;
  CondVar changed;
  uint64_t in_flight = 0;
  std::vector<PutItem> items;
  for (uint64_t i = 0; i < options.data.records; ++i) {
    PutItem item = options.data.Item(options.first + i);
    if (i % static_cast<uint64_t>(options.put) == 0) {
      items.push_back(std::move(item));
    } else {
      items.back().parts.push_back(std::move(item.parts[0]));
    }
  }
  auto store = MakePoolAsyncStore(cache->sections(), cache->objects(), loop, kReadThreads);
  const auto start = Clock::now();
  for (PutItem& item : items) {
    const uint64_t bytes = item.parts.size() * options.data.PayloadBytes();
    {
      MutexLock lock(mutex);
      while (in_flight > 0 && in_flight + bytes > kInFlightBytesMax) changed.Wait(mutex);
      in_flight += bytes;
    }
    store->Put(std::move(item), [&, bytes](const absl::StatusOr<PutCounts>& counts) {
      SH_CHECK_OK(counts);
      SH_CHECK(counts->already + counts->mismatched == 0, "records that were there already");
      MutexLock lock(mutex);
      in_flight -= bytes;
      changed.NotifyAll();
    });
  }
  {
    MutexLock lock(mutex);
    while (in_flight > 0) changed.Wait(mutex);
  }
  const double seconds = SecondsSince(start);
  loop.Stop();
  thread.join();
  store.reset();
  SH_CHECK_OK(cache->Close());
  return {{"seconds", seconds}, {"bytes", options.data.records * options.data.PayloadBytes()}};
}

nlohmann::json IngestFlat(const Options& options) {
  std::vector<PutItem> items;
  for (uint64_t i = 0; i < options.data.records; ++i) {
    items.push_back(options.data.Item(options.first + i));
  }
  FlatFile file(options.dir);
  uint64_t bytes = 0, unsynced = 0;
  const auto start = Clock::now();
  for (const PutItem& item : items) {
    file.Append(item.parts[0].payload);
    bytes += item.parts[0].payload.size();
    unsynced += item.parts[0].payload.size();
    if (unsynced + options.data.PayloadBytes() <= kGroupBytes) continue;
    file.Sync();
    unsynced = 0;
  }
  file.Sync();
  return {{"seconds", SecondsSince(start)}, {"bytes", bytes}};
}

nlohmann::json OpenBoth(const Options& options) {
  nlohmann::json result;
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  result["open_files_max"] = files.rlim_cur;
  for (const bool read_only : {true, false}) {
    const auto start = Clock::now();
    const auto cache = OpenCache(options, read_only);
    const auto first = cache->sections().Get({options.data.Key(options.data.records / 2)}, 1 << 20);
    SH_CHECK(first.ok() && (*first)[0].has_value(), "the cache lacks a record");
    result[read_only ? "read_only_seconds" : "writable_seconds"] = SecondsSince(start);
    SH_CHECK_OK(cache->Close());
  }
  return result;
}

// Bytes on disk a token of a cache that holds what a teacher said (bench/teacher_rows.h).
nlohmann::json FillRows(const Options& options) {
  const TeacherRows& teacher = BenchRows();
  const auto cache = OpenCache(options, /*read_only=*/false);
  for (size_t d = 0; d < teacher.documents.size(); ++d) {
    const DocumentRows& rows = teacher.documents[d];
    const auto count = static_cast<uint32_t>(rows.rows());
    const Digest document = Sha256Of(absl::StrCat("bench document ", d));
    const auto put = [&](const SectionSpec& spec, std::string payload) {
      PutItem item{
          {{{SectionKey(Sha256Of("bench teacher"), document, spec), 0}, count, std::move(payload)}},
          {Sha256Of("bench teacher"), Sha256Of("bench plan"), static_cast<uint32_t>(d / 32), spec,
           "bench"}};
      SH_CHECK_OK(CheckPut(item));
      SH_CHECK_OK(cache->sections().Put({item}));
    };
    put({.kind = SectionKind::kLogitsSampled, .draws = kBenchDraws},
        EncodeSampled(rows.sampled, 0, count));
    if (options.stats) put({.kind = SectionKind::kStats}, EncodeStats(rows.stats, 0, count));
  }
  SH_CHECK_OK(cache->Close());
  uint64_t bytes = 0;
  const std::string database = JoinPath(options.dir, "db");
  const auto names = ListFolder(database);
  SH_CHECK_OK(names);
  for (const std::string& name : *names) {
    if (absl::EndsWith(name, ".sst")) bytes += std::filesystem::file_size(JoinPath(database, name));
  }
  return {{"bytes", bytes}, {"tokens", teacher.rows()}, {"source", teacher.source}};
}

int Main(int argc, char** argv) {
  Options options;
  CommandLine command_line("One timed run over a store.", "store_bench");
  command_line.AddOption("mode", &options.mode).Required();
  command_line.AddOption("--dir", &options.dir, "folder of the store, or the flat file");
  command_line.AddOption("--address", &options.address, "of a cache server");
  command_line.AddOption("--records", &options.data.records, "of the data set");
  command_line.AddOption("--record-bytes", &options.data.record_bytes, "a multiple of 128");
  command_line.AddOption("--count", &options.count, "records to read");
  command_line.AddOption("--first", &options.first, "number of the first record to write");
  command_line.AddOption("--seed", &options.seed, "of the order of reading");
  command_line.AddOption("--batch", &options.batch, "records of one read");
  command_line.AddOption("--put", &options.put, "records of one put");
  command_line.AddFlag("--owned", &options.owned, "copies of the records, not views");
  command_line.AddFlag("--stats", &options.stats, "of fill-rows: the section stats as well");
  command_line.AddFlag("!--no-readahead", &options.readahead, "MDB_NORDAHEAD");
  if (const auto code = command_line.Parse(argc, argv)) return *code;
  // As cache_server and the trainer keep theirs.
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, 256 << 20);
  using Run = nlohmann::json (*)(const Options&);
  const std::map<std::string, Run> runs = {
      {"fill-cache", FillCache},       {"fill-lmdb", FillLmdb},       {"fill-flat", FillFlat},
      {"fill-ingested", FillIngested}, {"read-cache", ReadCache},     {"read-lmdb", ReadLmdb},
      {"read-client", ReadClient},     {"ingest-cache", IngestCache}, {"ingest-flat", IngestFlat},
      {"open-cache", OpenBoth},        {"fill-rows", FillRows}};
  const auto run = runs.find(options.mode);
  if (run == runs.end()) {
    std::fprintf(stderr, "store_bench: no mode %s\n", options.mode.c_str());
    return kExitUsage;
  }
  std::printf("%s\n", run->second(options).dump().c_str());
  return kExitOk;
}

}  // namespace
}  // namespace stillhouse

int main(int argc, char** argv) { return stillhouse::Main(argc, argv); }

// A cache in memory with its server, and a client that reaches it over an in-memory network.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "common/manual_executor.h"
#include "common/status.h"
#include "storage/async_store.h"
#include "storage/service/cache_client.h"
#include "storage/service/cache_server.h"
#include "transport/memory_channel.h"
#include "transport/rpc.h"

namespace stillhouse {

// Does the work at once, on the caller's thread; completions go through the executor.
class InlineAsyncStore final : public AsyncStore {
 public:
  InlineAsyncStore(TeacherCache& sections, ObjectStore& objects, Executor& executor)
      : sections_(sections), objects_(objects), executor_(executor) {}

  void Put(PutItem item, Callback<PutCounts> done) override {
    absl::StatusOr<PutCounts> result = PutCounts();
    if (!write_error.ok()) result = write_error;
    if (write_error.ok()) {
      const absl::Status checked = CheckPut(item);
      const auto counts = checked.ok() ? sections_.Put({item}) : checked;
      result = counts.ok() ? absl::StatusOr<PutCounts>((*counts)[0]) : counts.status();
    }
    if (after_write) after_write();
    executor_.PostAfter(put_time, [done = std::move(done), result]() mutable { done(result); });
  }
  void RunRead(Work work) override { executor_.Post(work(sections_, objects_)); }
  void RunWrite(Work work) override {
    executor_.Post(work(sections_, objects_));
    if (after_write) after_write();
  }

  absl::Status write_error;  // what every Put gives instead
  std::function<void()> after_write;
  absl::Duration put_time = absl::ZeroDuration();

 private:
  TeacherCache& sections_;
  ObjectStore& objects_;
  Executor& executor_;
};

struct ServedCache {
  explicit ServedCache(CacheServer::Options options = {}) : server_options(options) {
    Start();
    client_channel = network.MakeClient("mem://cache");
    rpc_client = MakeRpcClient(*client_channel, executor);
    client = MakeCacheClient(*rpc_client);
  }
  ~ServedCache() {
    client.reset();
    rpc_client.reset();
    Stop();
  }
  void Start() {
    sections = *TeacherCache::Open(*kv, "store-a");
    objects = *ObjectStore::Open(*kv, /*writable=*/true);
    store = std::make_unique<InlineAsyncStore>(*sections, *objects, executor);
    server_channel = *network.MakeServer("mem://cache");
    rpc_server = MakeRpcServer(*server_channel, executor);
    server = MakeCacheServer(*rpc_server, *store, sections->identity(), server_options);
  }
  void Stop() {
    rpc_server.reset();
    server_channel.reset();
    store.reset();
    server.reset();
  }

  // Runs time forward until the call is answered, at most for ten minutes of it.
  template <typename T, typename StartCall>
  absl::StatusOr<T> Wait(StartCall start) {
    std::optional<absl::StatusOr<T>> result;
    start([&result](absl::StatusOr<T> answer) { result = std::move(answer); });
    executor.RunUntilIdle();
    for (int i = 0; i < 6000 && !result.has_value(); ++i) executor.Advance(absl::Milliseconds(100));
    SH_CHECK(result.has_value(), "a call was never answered");
    return *std::move(result);
  }
  absl::StatusOr<StoreAck> Put(const PutItem& item) {
    return Wait<StoreAck>(
        [&](auto done) { client->Put(item.parts, item.provenance, std::move(done)); });
  }
  absl::StatusOr<std::vector<std::optional<Part>>> Get(std::vector<PartKey> keys) {
    return Wait<std::vector<std::optional<Part>>>(
        [&](auto done) { client->Get(std::move(keys), std::move(done)); });
  }
  absl::StatusOr<StoreAck> PutObject(const std::string& name, std::string bytes,
                                     bool replace = false) {
    return Wait<StoreAck>([&](auto done) {
      client->PutObject(name, std::make_shared<const std::string>(std::move(bytes)),
                        {.replace = replace}, std::move(done));
    });
  }
  absl::StatusOr<std::shared_ptr<const std::string>> GetObject(const std::string& name) {
    return Wait<std::shared_ptr<const std::string>>(
        [&](auto done) { client->GetObject(name, std::move(done)); });
  }

  CacheServer::Options server_options;
  ManualExecutor executor;
  MemoryNetwork network{executor};
  std::unique_ptr<KvStore> kv = MakeMemoryKvStore(4);
  std::unique_ptr<TeacherCache> sections;
  std::unique_ptr<ObjectStore> objects;
  std::unique_ptr<InlineAsyncStore> store;
  std::unique_ptr<ServerChannel> server_channel;
  std::unique_ptr<RpcServer> rpc_server;
  std::unique_ptr<CacheServer> server;
  std::unique_ptr<ClientChannel> client_channel;
  std::unique_ptr<RpcClient> rpc_client;
  std::unique_ptr<CacheClient> client;
};

}  // namespace stillhouse

// CacheServer: answers the methods of proto/cache.proto from a cache.
//
// Owner: the main of cache_server, or a test. Threads: event-driven, everything on the executor of
// the RpcServer; blocking work goes through the AsyncStore. Ordering: requests are answered as they
// finish. Durability: a Put or PutObject is answered OK only when it would survive SIGKILL and
// power loss. Limits: puts that wait hold at most `pending_bytes_max`; beyond that they are
// answered Unavailable, and clients come again.
#pragma once

#include <cstdint>
#include <memory>

#include "storage/async_store.h"
#include "storage/teacher_cache.h"
#include "transport/rpc.h"

namespace stillhouse {

class CacheServer {
 public:
  struct Options {
    uint64_t pending_bytes_max = 128ull << 20;
  };
  virtual ~CacheServer() = default;
};

// Destroy `rpc` first, then `store` (whose last work still uses the server), then the server.
std::unique_ptr<CacheServer> MakeCacheServer(RpcServer& rpc, AsyncStore& store,
                                             const CacheIdentity& identity,
                                             const CacheServer::Options& options = {});

}  // namespace stillhouse

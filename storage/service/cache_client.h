// CacheClient: the cache as teachers, students and the coordinator see it, over a Channel.
//
// Execution model: event-driven, no thread, never blocks; every callback runs on the executor
// given. Retries: a request whose answer did not come is sent again under the same request id until
// its deadline, and so is one that a busy server put off (Unavailable), after a pause; all requests
// are idempotent. Durability: Put and PutObject call back with OK only for what would survive
// SIGKILL and power loss. Integrity: what Get returns was checked against the key asked for, here
// and at the server.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/digest.h"
#include "storage/part.h"
#include "storage/sections.h"

namespace stillhouse {

class RpcClient;

// What a server promises to keep. A worker reports a chunk done with the acks it holds.
struct StoreAck {
  std::string store_id;
  uint64_t incarnation = 0;
  uint32_t stored = 0;      // new
  uint32_t already = 0;     // were there with the same decoded values
  uint32_t mismatched = 0;  // were there with other values: the first write won
};

class CacheClient {
 public:
  virtual ~CacheClient() = default;

  template <typename T>
  using Callback = absl::AnyInvocable<void(absl::StatusOr<T>)>;

  // One spec per call. InvalidArgument beyond kPutBytesMax or kPutPartsMax; ResourceExhausted when
  // the server's disk is full.
  virtual void Put(std::vector<Part> parts, Provenance provenance, Callback<StoreAck> done) = 0;
  // As many answers as keys, in order; nullopt for what is not there.
  virtual void Get(std::vector<PartKey> keys, Callback<std::vector<std::optional<Part>>> done) = 0;

  // Objects: plans, artefacts, job descriptions. Of any size (moved in pieces of kPartBytesMax).
  // A name that begins with "sha256/" must be that hash of the bytes. Storing other bytes under a
  // name that exists is AlreadyExists, unless `replace`.
  struct PutObjectOptions {
    bool replace = false;
  };
  virtual void PutObject(std::string name, std::shared_ptr<const std::string> bytes,
                         PutObjectOptions options, Callback<StoreAck> done) = 0;
  // NotFound when absent.
  virtual void GetObject(std::string name, Callback<std::shared_ptr<const std::string>> done) = 0;

  // For each chunk asked about: are all `sections` of all its documents stored? Held-out chunks are
  // asked for `held_out_sections`. The plan must be in the cache.
  struct InventoryRequest {
    Digest plan;
    Digest teacher;
    std::vector<SectionSpec> sections;
    std::vector<SectionSpec> held_out_sections;
    std::vector<uint32_t> chunks;  // empty: all
    // Names of artefacts of the teacher: chunk 0 is whole only with them.
    std::vector<std::string> first_chunk_artefacts;
  };
  virtual void Inventory(InventoryRequest request, Callback<std::vector<bool>> done) = 0;
};

inline constexpr uint64_t kPutBytesMax = 16ull
                                         << 20;  // of one Put, so that a server's queue is bounded

// Names of objects.
std::string PlanObjectName(const Digest& plan);  // "sha256/<hex>"
std::string ArtefactObjectName(const Digest& teacher,
                               absl::string_view name);  // "artefact/<hex>/<name>"
std::string InfluenceArtefactName(const Digest& plan);   // "influence/<hex>", measured over chunk 0
std::string JobObjectName(absl::string_view job);        // "job/<name>"

struct CacheClientOptions {
  // Of one call, over all its messages and tries; then DeadlineExceeded. Long enough for a server
  // that is started again.
  absl::Duration deadline = absl::Minutes(2);
};
// `rpc` must outlive the client. Callbacks of a client that is gone are dropped.
std::unique_ptr<CacheClient> MakeCacheClient(RpcClient& rpc,
                                             const CacheClientOptions& options = {});

}  // namespace stillhouse

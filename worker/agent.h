// Agent: what a teacher worker embeds to be commanded: register, heartbeat, lease loop, drain.
//
// Event-driven: runs on one executor, owns no thread, never blocks. The work itself is a
// ChunkWorker, which computes elsewhere and calls back on the executor.
//
//            Register ok            Lease granted              work done
//   [new] ──1──────────► [ready] ──2──────────► [working] ──3──────────► [ready]
//                          ▲ │                     │ 4 cancelled or lease lost: work is stopped
//     6 unknown worker ────┘ └──5 drain──► [drained]
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "common/digest.h"
#include "common/executor.h"

namespace stillhouse {

class RpcClient;

struct ChunkGrant {
  std::string job;
  uint32_t chunk = 0;
  uint64_t epoch = 0;
  Digest plan;
  std::vector<std::string> sections;  // canonical specs
};

struct ChunkResult {
  struct Ack {
    std::string store_id;
    uint64_t incarnation = 0;
  };
  std::vector<Ack> acks;
  uint64_t rows_computed = 0;
  uint32_t parts_mismatched = 0;
  double seconds = 0;
};

// Computes chunks. Called on the agent's executor; must not block it; calls back on that executor.
class ChunkWorker {
 public:
  virtual ~ChunkWorker() = default;
  // One chunk at a time. `progress(rows)` grows as rows become durable. A status with code
  // kInvalidArgument or kDataLoss blames the chunk, kResourceExhausted says that the cache has no
  // room (nobody is blamed, the chunk is tried again later); any other blames the worker or the
  // world.
  virtual void Start(const ChunkGrant& grant, absl::AnyInvocable<void(uint64_t)> progress,
                     absl::AnyInvocable<void(absl::StatusOr<ChunkResult>)> done) = 0;
  // How often the computation of this chunk has moved on, however little: a teacher that is slow is
  // told by it from one that hangs. 0 where rows say enough.
  virtual uint64_t Steps() const { return 0; }
  // Stop early; `done` is then called with Cancelled, in any case once.
  virtual void Cancel() = 0;
};

struct AgentOptions {
  std::string worker;  // unique name
  std::string host;
  int64_t pid = 0;
  uint64_t incarnation = 0;  // random per process
  Digest teacher;
  std::string teacher_dtype;
  std::string producer_class;
  bool leave_when_done = false;  // drain by itself when no job needs this teacher
  bool loading = false;          // register as "loading"; nothing is leased until Ready()
};

class Agent {
 public:
  // `rpc`, `executor` and `worker` must outlive the agent. `drained` is called once, when the agent
  // has nothing left to do and may be destroyed; its status is OK unless the coordinator refused it
  // (the status is its refusal) or asked for a fresh process (Unavailable: leave with an error, so
  // that the supervisor starts another one). All methods run on the executor.
  virtual ~Agent() = default;
  virtual void Start() = 0;
  virtual void Ready() = 0;  // the model is loaded; only with AgentOptions::loading
  virtual void Drain() = 0;  // finish what is held, then `drained`
};

std::unique_ptr<Agent> MakeAgent(const AgentOptions& options, RpcClient& rpc, Executor& executor,
                                 ChunkWorker& worker,
                                 absl::AnyInvocable<void(absl::Status)> drained);

}  // namespace stillhouse

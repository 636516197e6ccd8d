#include "tests/sharding/nccl_double/nccl_double.h"

#include <cstdio>
#include <cstring>
#include <map>
#include <utility>

#include "tests/sharding/nccl_double/nccl.h"
#include "tests/sharding/nccl_double/state.h"

namespace nccl_double {

enum class Kind { kReduce, kAllReduce, kBroadcast, kSend, kReceive };

struct Call {
  Kind kind;
  const char* from;
  char* to;
  size_t count;
  ncclDataType_t type;
  int root;  // or the peer
  ncclComm_t comm;
  cudaStream_t stream;
  bool over = false;
};

// The comms of one id.
struct Clique {
  int ranks = 0;
  std::map<int, ncclComm_t> joined;
  bool one_aborted = false;
  std::vector<std::deque<std::shared_ptr<Call>>> collectives;              // by rank
  std::map<std::pair<int, int>, std::deque<std::shared_ptr<Call>>> sends;  // by (from, to)
  std::map<std::pair<int, int>, std::deque<std::shared_ptr<Call>>> receives;
};

}  // namespace nccl_double

struct ncclComm {
  int rank = 0;
  std::shared_ptr<nccl_double::Clique> clique;
  bool aborted = false, finalising = false, finalised = false;
  int polls_to_launch = 0;      // until `launching` goes into the streams
  std::vector<Step> launching;  // puts a group into its stream
  int in_streams = 0;           // groups
};

using nccl_double::Alive;
using nccl_double::Call;
using nccl_double::Clique;
using nccl_double::Get;
using nccl_double::Kind;
using nccl_double::Misuse;
using stillhouse::MutexLock;

namespace {

constexpr int kPollsToLaunch = 3;

thread_local int group_depth = 0;
thread_local std::vector<std::shared_ptr<Call>> group;

size_t Width(ncclDataType_t type) { return type == ncclFloat32 ? 4 : type == ncclBfloat16 ? 2 : 1; }

void Copy(char* to, const char* from, size_t bytes) {
  if (to != from) std::memmove(to, from, bytes);
}

// All ranks have come to `calls`, one each.
void RunCollective(const std::vector<std::shared_ptr<Call>>& calls) {
  const Call& first = *calls[0];
  const size_t bytes = first.count * Width(first.type);
  if (first.kind == Kind::kBroadcast) {
    std::vector<char> data(calls[first.root]->from, calls[first.root]->from + bytes);
    for (const auto& call : calls) Copy(call->to, data.data(), bytes);
  } else {
    std::vector<float> sum(first.count);
    std::memcpy(sum.data(), first.from, bytes);
    for (size_t rank = 1; rank < calls.size(); ++rank) {
      const auto* values = reinterpret_cast<const float*>(calls[rank]->from);
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += values[i];
    }
    for (size_t rank = 0; rank < calls.size(); ++rank) {
      if (first.kind == Kind::kReduce && static_cast<int>(rank) != first.root) continue;
      Copy(calls[rank]->to, reinterpret_cast<const char*>(sum.data()), bytes);
    }
  }
  for (const auto& call : calls) call->over = true;
}

bool Alike(const Call& a, const Call& b) {
  return a.kind == b.kind && a.count == b.count && a.type == b.type && a.root == b.root;
}

// Runs what all of a clique have come to. Different calls never match: NCCL hangs.
void RunClique(Clique& clique) {
  for (;;) {
    std::vector<std::shared_ptr<Call>> calls;
    for (const auto& queue : clique.collectives) {
      if (queue.empty() || (!calls.empty() && !Alike(*calls[0], *queue.front()))) break;
      calls.push_back(queue.front());
    }
    if (static_cast<int>(calls.size()) < clique.ranks) break;
    RunCollective(calls);
    for (auto& queue : clique.collectives) queue.pop_front();
  }
  for (auto& [pair, sends] : clique.sends) {
    auto& receives = clique.receives[pair];
    while (!sends.empty() && !receives.empty()) {
      if (sends.front()->count != receives.front()->count) break;
      Copy(receives.front()->to, sends.front()->from,
           sends.front()->count * Width(sends.front()->type));
      sends.front()->over = receives.front()->over = true;
      sends.pop_front();
      receives.pop_front();
    }
  }
}

void Come(const std::shared_ptr<Call>& call) {
  Clique& clique = *call->comm->clique;
  const int rank = call->comm->rank;
  if (call->kind == Kind::kSend) {
    clique.sends[{rank, call->root}].push_back(call);
  } else if (call->kind == Kind::kReceive) {
    clique.receives[{call->root, rank}].push_back(call);
  } else {
    clique.collectives[rank].push_back(call);
  }
}

// A group as one step of its stream: its calls come together, and it is over when all of them are.
Step StepOf(ncclComm_t comm, std::vector<std::shared_ptr<Call>> calls) {
  return [comm, calls = std::move(calls), came = false]() mutable {
    if (!comm->aborted) {
      if (!came) {
        for (const auto& call : calls) Come(call);
      }
      came = true;
      RunClique(*comm->clique);
      for (const auto& call : calls) {
        if (!call->over) return false;
      }
    }
    --comm->in_streams;
    return true;
  };
}

ncclResult_t Queue(Call call) {
  {
    MutexLock lock(Get().mutex);
    if (!Alive(call.comm, "a collective") || !Alive(call.stream, "a collective")) {
      return ncclInvalidArgument;
    }
    const bool sends = call.kind != Kind::kReceive, receives = call.kind != Kind::kSend;
    if (call.count == 0 || (sends && call.from == nullptr) || (receives && call.to == nullptr)) {
      Misuse("an empty or null transfer");
      return ncclInvalidArgument;
    }
    if (group_depth == 0) Misuse("a collective outside of a group");
  }
  group.push_back(std::make_shared<Call>(call));
  return ncclSuccess;
}

}  // namespace

const char* ncclGetErrorString(ncclResult_t result) {
  return result == ncclSystemError ? "unhandled system error" : "error of the double";
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  MutexLock lock(Get().mutex);
  std::memset(id->internal, 0, sizeof(id->internal));
  std::snprintf(id->internal, sizeof(id->internal), "id %d", ++Get().ids);
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  MutexLock lock(Get().mutex);
  if (config->blocking != 0) Misuse("a blocking comm");
  auto& clique = Get().cliques[std::string(id.internal, sizeof(id.internal))];
  if (clique == nullptr) clique = std::make_shared<Clique>();
  clique->ranks = ranks;
  clique->collectives.resize(ranks);
  auto made = std::make_shared<ncclComm>();
  *comm = made.get();
  Get().ever.push_back(made);
  (*comm)->rank = rank;
  (*comm)->clique = clique;
  if (!clique->joined.insert({rank, *comm}).second) return ncclInvalidUsage;
  Get().alive.insert(*comm);
  ++Get().counts.comms;
  return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* state) {
  MutexLock lock(Get().mutex);
  if (!Alive(comm, "ncclCommGetAsyncError")) return ncclInvalidArgument;
  const Clique& clique = *comm->clique;
  *state = ncclSuccess;
  if (static_cast<int>(clique.joined.size()) < clique.ranks) *state = ncclInProgress;
  if (!comm->launching.empty()) {
    *state = ncclInProgress;
    if (--comm->polls_to_launch == 0) {
      for (Step& launch : comm->launching) launch();
      comm->launching.clear();
      *state = ncclSuccess;
    }
  }
  nccl_double::RunStreams();
  if (comm->finalising && !comm->finalised) {
    if (comm->in_streams == 0) comm->finalised = true;
    *state = ncclInProgress;
  }
  if (Get().failing_ranks.count(comm->rank) > 0) *state = ncclSystemError;
  if (clique.one_aborted && Get().tell_of_aborts && comm->in_streams > 0) *state = ncclRemoteError;
  return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  MutexLock lock(Get().mutex);
  if (!Alive(comm, "ncclCommFinalize")) return ncclInvalidArgument;
  comm->finalising = true;
  return ncclInProgress;
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  MutexLock lock(Get().mutex);
  if (!Alive(comm, "ncclCommDestroy")) return ncclInvalidArgument;
  if (!comm->finalised) Misuse("a comm was destroyed before it was finalised");
  Get().alive.erase(comm);
  --Get().counts.comms;
  ++Get().counts.destroyed;
  return ncclSuccess;  // its memory stays: steps in streams may refer to it
}
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  MutexLock lock(Get().mutex);
  if (!Alive(comm, "ncclCommAbort")) return ncclInvalidArgument;
  comm->aborted = comm->clique->one_aborted = true;
  Get().alive.erase(comm);
  --Get().counts.comms;
  ++Get().counts.aborted;
  nccl_double::RunStreams();
  return ncclSuccess;
}

ncclResult_t ncclGroupStart() {
  ++group_depth;
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
  if (--group_depth > 0) return ncclSuccess;
  std::vector<std::shared_ptr<Call>> calls = std::exchange(group, {});
  if (calls.empty()) return ncclSuccess;
  MutexLock lock(Get().mutex);
  const ncclComm_t comm = calls[0]->comm;
  const cudaStream_t stream = calls[0]->stream;
  ++comm->in_streams;
  comm->polls_to_launch = kPollsToLaunch;
  comm->launching.push_back([stream, step = StepOf(comm, std::move(calls))] {
    stream->steps.push_back(step);
    return true;
  });
  return ncclInProgress;
}

ncclResult_t ncclReduce(const void* from, void* to, size_t count, ncclDataType_t type, ncclRedOp_t,
                        int root, ncclComm_t comm, cudaStream_t stream) {
  // Only the root receives; the others may have nothing to receive into.
  char* place = comm != nullptr && root == comm->rank
                    ? static_cast<char*>(to)
                    : const_cast<char*>(static_cast<const char*>(from));
  return Queue(
      {Kind::kReduce, static_cast<const char*>(from), place, count, type, root, comm, stream});
}
ncclResult_t ncclAllReduce(const void* from, void* to, size_t count, ncclDataType_t type,
                           ncclRedOp_t, ncclComm_t comm, cudaStream_t stream) {
  return Queue({Kind::kAllReduce, static_cast<const char*>(from), static_cast<char*>(to), count,
                type, 0, comm, stream});
}
ncclResult_t ncclBroadcast(const void* from, void* to, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
  return Queue({Kind::kBroadcast, static_cast<const char*>(from), static_cast<char*>(to), count,
                type, root, comm, stream});
}
ncclResult_t ncclSend(const void* from, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  return Queue(
      {Kind::kSend, static_cast<const char*>(from), nullptr, count, type, peer, comm, stream});
}
ncclResult_t ncclRecv(void* to, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return Queue({Kind::kReceive, nullptr, static_cast<char*>(to), count, type, peer, comm, stream});
}

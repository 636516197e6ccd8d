#include <cuda_runtime.h>
#include <nccl.h>

#include <cstring>
#include <functional>
#include <thread>
#include <utility>
#include <vector>

#include "common/clock.h"
#include "common/mutex.h"
#include "common/status.h"
#include "sharding/collective.h"
#include "sharding/communicator.h"

namespace stillhouse {
namespace {

absl::Status CudaStatus(cudaError_t error, absl::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("NCCL: ", what, ": ", cudaGetErrorString(error)));
}

// OK for what is under way, too: the comm is non-blocking.
absl::Status NcclStatus(ncclResult_t result, absl::string_view what) {
  if (result == ncclSuccess || result == ncclInProgress) return absl::OkStatus();
  if (result == ncclRemoteError) {
    return absl::AbortedError(absl::StrCat("NCCL: ", what, ": a rank gave up or died"));
  }
  return absl::InternalError(absl::StrCat("NCCL: ", what, ": ", ncclGetErrorString(result)));
}

absl::Status TooLate(absl::string_view what, absl::Duration deadline) {
  return absl::DeadlineExceededError(absl::StrCat("NCCL: ", what, ": a rank did not come within ",
                                                  absl::FormatDuration(deadline)));
}

// The NCCL comm and its stream, shared by the communicator and what it has started. NCCL is called
// under the mutex, so that Abort of another thread does not take the comm away from a call; no call
// waits there, as the comm is non-blocking.
class Link {
 public:
  Link(int device, absl::Duration deadline) : device_(device), deadline_(deadline) {}
  ~Link() {
    Close();
    // After a failure a kernel may still be at work with them, and freeing would wait for it.
    if (!closed_well_) return;
    if (scratch_ != nullptr) cudaFree(scratch_);
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  absl::Status Connect(const ncclUniqueId& id, int rank, int ranks) {
    SH_RETURN_IF_ERROR(CudaStatus(cudaSetDevice(device_), "choosing the device"));
    SH_RETURN_IF_ERROR(
        CudaStatus(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream"));
    SH_RETURN_IF_ERROR(CudaStatus(cudaMalloc(&scratch_, sizeof(float)), "allocating"));
    SH_RETURN_IF_ERROR(
        CudaStatus(cudaMemsetAsync(scratch_, 0, sizeof(float), stream_), "allocating"));
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    {
      MutexLock lock(mutex_);
      ncclComm_t comm = nullptr;
      const ncclResult_t result = ncclCommInitRankConfig(&comm, ranks, id, rank, &config);
      comm_ = comm;
      SH_RETURN_IF_ERROR(NcclStatus(result, "joining"));
    }
    return AwaitComm("joining");
  }

  cudaStream_t stream() const { return stream_; }
  void* scratch() const { return scratch_; }  // one float on the device, of no particular value

  // Runs `enqueue` in one group, after what the producers' stream holds, and records `done`.
  absl::Status Enqueue(void* producer, absl::string_view what, cudaEvent_t done,
                       const std::function<ncclResult_t(ncclComm_t, cudaStream_t)>& enqueue) {
    absl::Status status = CudaStatus(cudaSetDevice(device_), what);
    if (status.ok()) {
      status = CudaStatus(cudaEventRecord(done, static_cast<cudaStream_t>(producer)), what);
    }
    if (status.ok()) status = CudaStatus(cudaStreamWaitEvent(stream_, done, 0), what);
    if (status.ok()) status = Launch(what, enqueue);
    if (status.ok()) status = AwaitComm(what);  // what follows in the stream comes after the group
    if (status.ok()) status = CudaStatus(cudaEventRecord(done, stream_), what);
    if (!status.ok()) Abort(status);
    return status;
  }

  // Whether what was enqueued before `done` is over.
  absl::StatusOr<bool> Over(cudaEvent_t done, absl::string_view what) {
    SH_RETURN_IF_ERROR(Working(what).status());
    const cudaError_t state = cudaEventQuery(done);
    if (state == cudaErrorNotReady) return false;
    const absl::Status status = CudaStatus(state, what);
    if (status.ok()) return true;
    Abort(status);
    return status;
  }

  absl::Status AwaitEvent(cudaEvent_t done, absl::string_view what) {
    return Await(what, [&] { return Over(done, what); });
  }

  void Abort(const absl::Status& why) {
    MutexLock lock(mutex_);
    Kill(why);
  }

 private:
  absl::Status Launch(absl::string_view what,
                      const std::function<ncclResult_t(ncclComm_t, cudaStream_t)>& enqueue) {
    MutexLock lock(mutex_);
    SH_RETURN_IF_ERROR(dead_);
    SH_RETURN_IF_ERROR(NcclStatus(ncclGroupStart(), what));
    const ncclResult_t queued = enqueue(comm_, stream_);
    const ncclResult_t ended = ncclGroupEnd();  // also when queueing failed: groups nest
    SH_RETURN_IF_ERROR(NcclStatus(queued, what));
    return NcclStatus(ended, what);
  }

  void Kill(const absl::Status& why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!dead_.ok()) return;
    dead_ = why;
    if (comm_ != nullptr) ncclCommAbort(comm_);
    comm_ = nullptr;
  }

  // Lets a healthy comm end what it has under way; a peer may still be reading from it.
  void Close() {
    absl::Status status;
    {
      MutexLock lock(mutex_);
      if (comm_ == nullptr || !dead_.ok()) return;
      status = NcclStatus(ncclCommFinalize(comm_), "closing");
    }
    if (status.ok()) status = AwaitComm("closing");
    MutexLock lock(mutex_);
    if (!status.ok()) return Kill(status);
    ncclCommDestroy(comm_);
    comm_ = nullptr;
    closed_well_ = true;
  }

  // Whether the comm still works on what was asked of it.
  absl::StatusOr<bool> Working(absl::string_view what) {
    MutexLock lock(mutex_);
    SH_RETURN_IF_ERROR(dead_);
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(comm_, &state);
    const absl::Status status = NcclStatus(asked != ncclSuccess ? asked : state, what);
    if (!status.ok()) {
      Kill(status);
      return status;
    }
    return state == ncclInProgress;
  }

  absl::Status AwaitComm(absl::string_view what) {
    return Await(what, [&]() -> absl::StatusOr<bool> {
      SH_ASSIGN_OR_RETURN(const bool working, Working(what));
      return !working;
    });
  }

  template <typename Condition>
  absl::Status Await(absl::string_view what, Condition over) {
    const absl::Duration until = SystemClock().Now() + deadline_;
    for (;;) {
      const absl::StatusOr<bool> now = over();
      if (!now.ok()) return now.status();
      if (*now) return absl::OkStatus();
      if (SystemClock().Now() > until) {
        Abort(TooLate(what, deadline_));
        return TooLate(what, deadline_);
      }
      std::this_thread::yield();
    }
  }

  const int device_;
  const absl::Duration deadline_;
  cudaStream_t stream_ = nullptr;  // constant after Connect, like scratch_
  void* scratch_ = nullptr;
  bool closed_well_ = false;  // destructor only
  Mutex mutex_;
  ncclComm_t comm_ ABSL_GUARDED_BY(mutex_) = nullptr;
  absl::Status dead_ ABSL_GUARDED_BY(mutex_);
};

class NcclPending final : public PendingCollective {
 public:
  NcclPending(std::shared_ptr<Link> link, cudaEvent_t done, absl::string_view what)
      : link_(std::move(link)), done_(done), what_(what) {}
  ~NcclPending() override {
    if (!waited_) link_->Abort(absl::AbortedError("NCCL: a collective was given up"));
    cudaEventDestroy(done_);
  }
  absl::StatusOr<bool> Poll() override { return link_->Over(done_, what_); }
  absl::Status Wait() override {
    SH_CHECK(!waited_);
    waited_ = true;
    return link_->AwaitEvent(done_, what_);
  }

 private:
  std::shared_ptr<Link> link_;
  cudaEvent_t done_;
  std::string what_;
  bool waited_ = false;
};

ncclDataType_t NcclType(DType dtype) {
  if (dtype == DType::kF32) return ncclFloat32;
  return dtype == DType::kBF16 ? ncclBfloat16 : ncclUint8;
}
// Elements of NcclType that `count` elements of `dtype` are.
size_t NcclCount(DType dtype, size_t count) {
  return NcclType(dtype) == ncclUint8 ? count * DTypeSize(dtype) : count;
}

using Enqueue = std::function<ncclResult_t(ncclComm_t, cudaStream_t)>;

char* At(const TensorView& view, size_t element) {
  return static_cast<char*>(view.data) + element * DTypeSize(view.dtype);
}
// Each part is enqueued by itself: they differ in length, and an empty one has nothing to say.
template <typename Call>
ncclResult_t ForEachPart(const std::vector<FlatRange>& parts, Call call) {
  for (size_t rank = 0; rank < parts.size(); ++rank) {
    if (parts[rank].size() == 0) continue;
    const ncclResult_t result = call(static_cast<int>(rank), parts[rank]);
    if (result != ncclSuccess && result != ncclInProgress) return result;
  }
  return ncclSuccess;
}

Enqueue ReduceScatterOf(const Collective& c) {
  return [=](ncclComm_t comm, cudaStream_t stream) {
    return ForEachPart(c.sends, [&](int owner, FlatRange part) {
      return ncclReduce(At(c.input, part.begin), c.output.data, part.size(), ncclFloat32, ncclSum,
                        owner, comm, stream);
    });
  };
}
Enqueue AllGatherOf(const Collective& c, int rank) {
  return [=](ncclComm_t comm, cudaStream_t stream) {
    return ForEachPart(c.sends, [&](int owner, FlatRange part) {
      // Only the owner's input is read; NCCL wants a pointer of the others, too.
      void* to = At(c.output, part.begin);
      const void* from = owner == rank ? c.input.data : to;
      return ncclBroadcast(from, to, NcclCount(c.output.dtype, part.size()),
                           NcclType(c.output.dtype), owner, comm, stream);
    });
  };
}
Enqueue AllToAllOf(const Collective& c) {
  return [=](ncclComm_t comm, cudaStream_t stream) {
    const DType dtype = c.input.dtype;
    const ncclResult_t sent = ForEachPart(c.sends, [&](int peer, FlatRange part) {
      return ncclSend(At(c.input, part.begin), NcclCount(dtype, part.size()), NcclType(dtype), peer,
                      comm, stream);
    });
    if (sent != ncclSuccess) return sent;
    return ForEachPart(c.receives, [&](int peer, FlatRange part) {
      return ncclRecv(At(c.output, part.begin), NcclCount(dtype, part.size()), NcclType(dtype),
                      peer, comm, stream);
    });
  };
}
// All-reduce and broadcast: one call, for what is there.
Enqueue InPlaceOf(const Collective& c) {
  return [=](ncclComm_t comm, cudaStream_t stream) {
    if (c.input.count == 0) return ncclSuccess;
    if (c.operation == Operation::kAllReduce) {
      return ncclAllReduce(c.input.data, c.input.data, c.input.count, ncclFloat32, ncclSum, comm,
                           stream);
    }
    return ncclBroadcast(c.input.data, c.input.data, NcclCount(c.input.dtype, c.input.count),
                         NcclType(c.input.dtype), c.root, comm, stream);
  };
}
Enqueue BarrierOf(void* scratch) {
  return [=](ncclComm_t comm, cudaStream_t stream) {
    return ncclAllReduce(scratch, scratch, 1, ncclFloat32, ncclSum, comm, stream);
  };
}

class NcclCommunicator final : public CheckedCommunicator {
 public:
  NcclCommunicator(std::shared_ptr<Link> link, int rank, int ranks)
      : link_(std::move(link)), rank_(rank), ranks_(ranks) {}

  int rank() const override { return rank_; }
  int size() const override { return ranks_; }
  void Abort() override { link_->Abort(absl::AbortedError("NCCL: a rank gave up")); }

 protected:
  Pending Begin(Collective collective) override {
    void* producer = collective.input.stream;
    switch (collective.operation) {
      case Operation::kReduceScatter:
        if (collective.input.dtype != DType::kF32) {
          return absl::UnimplementedError(absl::StrCat("NCCL reduces fp32 only, not ",
                                                       DTypeName(collective.input.dtype),
                                                       ": it would round at every hop"));
        }
        return Launch(producer, "reduce-scatter", ReduceScatterOf(collective));
      case Operation::kAllGather:
        return Launch(producer, "all-gather", AllGatherOf(collective, rank_));
      case Operation::kAllReduce:
        return Launch(producer, "all-reduce", InPlaceOf(collective));
      case Operation::kBroadcast:
        return Launch(producer, "broadcast", InPlaceOf(collective));
      case Operation::kAllToAll:
        return Launch(producer, "all-to-all", AllToAllOf(collective));
      case Operation::kBarrier:
        return Launch(link_->stream(), "barrier", BarrierOf(link_->scratch()));
    }
    return absl::InternalError("NCCL: an unknown collective");
  }

 private:
  Pending Launch(void* producer, absl::string_view what, const Enqueue& enqueue) {
    cudaEvent_t done = nullptr;
    SH_RETURN_IF_ERROR(CudaStatus(cudaEventCreateWithFlags(&done, cudaEventDisableTiming), what));
    const absl::Status status = link_->Enqueue(producer, what, done, enqueue);
    if (!status.ok()) {
      cudaEventDestroy(done);
      return status;
    }
    return std::unique_ptr<PendingCollective>(std::make_unique<NcclPending>(link_, done, what));
  }

  const std::shared_ptr<Link> link_;
  const int rank_, ranks_;
};

absl::Status NeedDevice() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error == cudaSuccess && devices > 0) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("NCCL: no CUDA device: ", cudaGetErrorString(error)));
}

}  // namespace

absl::StatusOr<NcclId> MakeNcclId() {
  SH_RETURN_IF_ERROR(NeedDevice());
  ncclUniqueId id;
  SH_RETURN_IF_ERROR(NcclStatus(ncclGetUniqueId(&id), "making an id"));
  return NcclId{std::string(id.internal, sizeof(id.internal))};
}

absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(const NcclId& id, int rank,
                                                                   int ranks, int device,
                                                                   absl::Duration deadline) {
  SH_CHECK(0 <= rank && rank < ranks);
  SH_RETURN_IF_ERROR(NeedDevice());
  ncclUniqueId unique;
  if (id.bytes.size() != sizeof(unique.internal)) {
    return absl::InvalidArgumentError("NCCL: not an id of NCCL's");
  }
  std::memcpy(unique.internal, id.bytes.data(), id.bytes.size());
  auto link = std::make_shared<Link>(device, deadline);
  const absl::Status connected = link->Connect(unique, rank, ranks);
  if (!connected.ok()) {
    link->Abort(connected);
    return connected;
  }
  return std::unique_ptr<Communicator>(
      std::make_unique<NcclCommunicator>(std::move(link), rank, ranks));
}

}  // namespace stillhouse

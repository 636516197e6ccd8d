#include <cuda_runtime.h>
#include <nccl.h>

#include <cstring>
#include <functional>
#include <thread>
#include <utility>

#include "common/clock.h"
#include "common/mutex.h"
#include "common/status.h"
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
  return absl::InternalError(absl::StrCat("NCCL: ", what, ": ", ncclGetErrorString(result)));
}

absl::Status TooLate(absl::string_view what, absl::Duration deadline) {
  return absl::DeadlineExceededError(absl::StrCat("NCCL: ", what, ": a rank did not come within ",
                                                  absl::FormatDuration(deadline)));
}

// The NCCL comm and its stream, shared by the communicator and what it has started.
class Link {
 public:
  Link(int device, absl::Duration deadline) : device_(device), deadline_(deadline) {}
  ~Link() {
    Abort(absl::AbortedError("NCCL: the communicator is closed"));
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  absl::Status Connect(const ncclUniqueId& id, int rank, int ranks) {
    SH_RETURN_IF_ERROR(CudaStatus(cudaSetDevice(device_), "choosing the device"));
    SH_RETURN_IF_ERROR(
        CudaStatus(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream"));
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    ncclComm_t comm = nullptr;
    const ncclResult_t result = ncclCommInitRankConfig(&comm, ranks, id, rank, &config);
    {
      MutexLock lock(mutex_);
      comm_ = comm;
    }
    SH_RETURN_IF_ERROR(NcclStatus(result, "joining"));
    return AwaitComm("joining", SystemClock().Now() + deadline_);
  }

  // Runs `enqueue` in one group, after what the producers' stream holds, and records `done`.
  absl::Status Enqueue(void* producer, absl::string_view what, cudaEvent_t done,
                       const std::function<ncclResult_t(ncclComm_t, cudaStream_t)>& enqueue) {
    ncclComm_t comm = nullptr;
    {
      MutexLock lock(mutex_);
      SH_RETURN_IF_ERROR(dead_);
      comm = comm_;
    }
    SH_RETURN_IF_ERROR(CudaStatus(cudaSetDevice(device_), what));
    SH_RETURN_IF_ERROR(
        CudaStatus(cudaEventRecord(done, static_cast<cudaStream_t>(producer)), what));
    SH_RETURN_IF_ERROR(CudaStatus(cudaStreamWaitEvent(stream_, done, 0), what));
    SH_RETURN_IF_ERROR(NcclStatus(ncclGroupStart(), what));
    const ncclResult_t queued = enqueue(comm, stream_);
    const ncclResult_t ended = ncclGroupEnd();
    absl::Status status = NcclStatus(queued, what);
    if (status.ok()) status = NcclStatus(ended, what);
    if (status.ok()) status = AwaitComm(what, SystemClock().Now() + deadline_);
    if (status.ok()) status = CudaStatus(cudaEventRecord(done, stream_), what);
    if (!status.ok()) Abort(status);
    return status;
  }

  absl::Status AwaitEvent(cudaEvent_t done, absl::string_view what) {
    const absl::Duration until = SystemClock().Now() + deadline_;
    for (;;) {
      SH_RETURN_IF_ERROR(CheckComm(what).first);
      const cudaError_t state = cudaEventQuery(done);
      if (state == cudaSuccess) return absl::OkStatus();
      absl::Status status = absl::OkStatus();
      if (state != cudaErrorNotReady) status = CudaStatus(state, what);
      if (status.ok() && SystemClock().Now() > until) status = TooLate(what, deadline_);
      if (!status.ok()) {
        Abort(status);
        return status;
      }
      std::this_thread::yield();
    }
  }

  void Abort(absl::Status why) {
    MutexLock lock(mutex_);
    if (!dead_.ok()) return;
    dead_ = std::move(why);
    if (comm_ != nullptr) ncclCommAbort(comm_);
    comm_ = nullptr;
  }

 private:
  // The state of the comm, and whether it still works on what was asked of it.
  std::pair<absl::Status, bool> CheckComm(absl::string_view what) {
    ncclResult_t state = ncclSuccess;
    {
      MutexLock lock(mutex_);
      if (!dead_.ok()) return {dead_, false};
      const ncclResult_t asked = ncclCommGetAsyncError(comm_, &state);
      if (asked != ncclSuccess) state = asked;
    }
    const absl::Status status = NcclStatus(state, what);
    if (!status.ok()) Abort(status);
    return {status, state == ncclInProgress};
  }

  absl::Status AwaitComm(absl::string_view what, absl::Duration until) {
    for (;;) {
      const auto [status, working] = CheckComm(what);
      if (!status.ok() || !working) return status;
      if (SystemClock().Now() > until) {
        Abort(TooLate(what, deadline_));
        return TooLate(what, deadline_);
      }
      std::this_thread::yield();
    }
  }

  const int device_;
  const absl::Duration deadline_;
  cudaStream_t stream_ = nullptr;  // constant after Connect
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

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(std::shared_ptr<Link> link, int rank, int ranks)
      : link_(std::move(link)), rank_(rank), ranks_(ranks) {}

  int rank() const override { return rank_; }
  int size() const override { return ranks_; }

  Pending ReduceScatter(const TensorView& input, absl::Span<const FlatRange> shards,
                        const TensorView& output) override {
    SH_RETURN_IF_ERROR(OnlyFp32(input));
    const std::vector<FlatRange> parts(shards.begin(), shards.end());
    // One reduction per owner: shards may differ in size.
    return Begin(input, "reduce-scatter", [=](ncclComm_t comm, cudaStream_t stream) {
      ncclResult_t result = ncclSuccess;
      for (size_t r = 0; r < parts.size() && result == ncclSuccess; ++r) {
        const float* from = static_cast<const float*>(input.data) + parts[r].begin;
        result = Going(ncclReduce(from, output.data, parts[r].size(), ncclFloat32, ncclSum,
                                  static_cast<int>(r), comm, stream));
      }
      return result;
    });
  }

  Pending AllGather(const TensorView& input, absl::Span<const FlatRange> shards,
                    const TensorView& output) override {
    const std::vector<FlatRange> parts(shards.begin(), shards.end());
    return Begin(input, "all-gather", [=](ncclComm_t comm, cudaStream_t stream) {
      ncclResult_t result = ncclSuccess;
      for (size_t r = 0; r < parts.size() && result == ncclSuccess; ++r) {
        char* to = static_cast<char*>(output.data) + parts[r].begin * DTypeSize(output.dtype);
        result = Going(ncclBroadcast(input.data, to, NcclCount(output.dtype, parts[r].size()),
                                     NcclType(output.dtype), static_cast<int>(r), comm, stream));
      }
      return result;
    });
  }

  Pending AllReduceSum(const TensorView& in_out) override {
    SH_RETURN_IF_ERROR(OnlyFp32(in_out));
    return Begin(in_out, "all-reduce", [=](ncclComm_t comm, cudaStream_t stream) {
      return ncclAllReduce(in_out.data, in_out.data, in_out.count, ncclFloat32, ncclSum, comm,
                           stream);
    });
  }

  Pending Broadcast(const TensorView& in_out, int root) override {
    return Begin(in_out, "broadcast", [=](ncclComm_t comm, cudaStream_t stream) {
      return ncclBroadcast(in_out.data, in_out.data, NcclCount(in_out.dtype, in_out.count),
                           NcclType(in_out.dtype), root, comm, stream);
    });
  }

  void Abort() override { link_->Abort(absl::AbortedError("NCCL: a rank gave up")); }

 private:
  static ncclResult_t Going(ncclResult_t result) {
    return result == ncclInProgress ? ncclSuccess : result;
  }
  static absl::Status OnlyFp32(const TensorView& view) {
    if (view.dtype == DType::kF32) return absl::OkStatus();
    return absl::UnimplementedError(absl::StrCat(
        "NCCL reduces fp32 only, not ", DTypeName(view.dtype), ": it would round at every hop"));
  }

  Pending Begin(const TensorView& view, absl::string_view what,
                const std::function<ncclResult_t(ncclComm_t, cudaStream_t)>& enqueue) {
    cudaEvent_t done = nullptr;
    SH_RETURN_IF_ERROR(CudaStatus(cudaEventCreateWithFlags(&done, cudaEventDisableTiming), what));
    const absl::Status status = link_->Enqueue(view.stream, what, done, enqueue);
    if (!status.ok()) {
      cudaEventDestroy(done);
      return status;
    }
    return std::unique_ptr<PendingCollective>(std::make_unique<NcclPending>(link_, done, what));
  }

  std::shared_ptr<Link> link_;
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

#include "sharding/mpi_world.h"

#include <mpi.h>

#include <climits>
#include <cstring>
#include <thread>
#include <utility>

#include "common/clock.h"
#include "common/mutex.h"
#include "common/status.h"

namespace stillhouse {
namespace {

constexpr int kNoticeTag = MessageLayer::kTagsMax;

// MPI was asked for MPI_THREAD_SERIALIZED: whoever calls it holds this.
Mutex& MpiMutex() {
  static Mutex& mutex = *new Mutex;
  return mutex;
}

absl::Status MpiStatus(int code, absl::string_view what) {
  if (code == MPI_SUCCESS) return absl::OkStatus();
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  return absl::InternalError(
      absl::StrCat("MPI: ", what, ": ", absl::string_view(text, static_cast<size_t>(length))));
}

// MPI's handles are a pointer (OpenMPI) or an int (MPICH).
static_assert(sizeof(MPI_Request) <= sizeof(MessageLayer::Request));
MessageLayer::Request Pack(MPI_Request request) {
  MessageLayer::Request packed = 0;
  std::memcpy(&packed, &request, sizeof(request));
  return packed;
}

class MpiLayer final : public MessageLayer {
 public:
  MpiLayer(MPI_Comm comm, int rank, int size) : comm_(comm), rank_(rank), size_(size) {}

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  absl::StatusOr<Request> Send(int peer, int tag, const void* data, size_t bytes) override {
    SH_CHECK(bytes <= INT_MAX && tag < kTagsMax);
    MutexLock lock(MpiMutex());
    MPI_Request request = MPI_REQUEST_NULL;
    const int code = MPI_Isend(data, static_cast<int>(bytes), MPI_BYTE, peer, tag, comm_, &request);
    SH_RETURN_IF_ERROR(MpiStatus(code, absl::StrCat("sending to rank ", peer)));
    return Pack(request);
  }

  absl::StatusOr<Request> Receive(int peer, int tag, void* data, size_t bytes) override {
    SH_CHECK(bytes <= INT_MAX && tag < kTagsMax);
    MutexLock lock(MpiMutex());
    MPI_Request request = MPI_REQUEST_NULL;
    const int code = MPI_Irecv(data, static_cast<int>(bytes), MPI_BYTE, peer, tag, comm_, &request);
    SH_RETURN_IF_ERROR(MpiStatus(code, absl::StrCat("receiving from rank ", peer)));
    return Pack(request);
  }

  absl::StatusOr<bool> Test(Request packed) override {
    MutexLock lock(MpiMutex());
    MPI_Request request = MPI_REQUEST_NULL;
    std::memcpy(&request, &packed, sizeof(request));
    int over = 0;
    SH_RETURN_IF_ERROR(MpiStatus(MPI_Test(&request, &over, MPI_STATUS_IGNORE), "a message"));
    return over != 0;
  }

  // The request and the bytes of a notice are never asked for again: the communicator is dying.
  absl::Status SendNotice(int peer, absl::string_view text) override {
    MutexLock lock(MpiMutex());
    auto& kept = *new std::string(text);
    MPI_Request request = MPI_REQUEST_NULL;
    SH_RETURN_IF_ERROR(MpiStatus(MPI_Isend(kept.data(), static_cast<int>(kept.size()), MPI_BYTE,
                                           peer, kNoticeTag, comm_, &request),
                                 "sending a notice"));
    int over = 0;  // also pushes it on its way
    return MpiStatus(MPI_Test(&request, &over, MPI_STATUS_IGNORE), "sending a notice");
  }

  absl::StatusOr<std::optional<std::string>> TakeNotice() override {
    MutexLock lock(MpiMutex());
    int there = 0;
    MPI_Status about;
    SH_RETURN_IF_ERROR(MpiStatus(MPI_Iprobe(MPI_ANY_SOURCE, kNoticeTag, comm_, &there, &about),
                                 "looking for a notice"));
    if (there == 0) return std::nullopt;
    int bytes = 0;
    SH_RETURN_IF_ERROR(MpiStatus(MPI_Get_count(&about, MPI_BYTE, &bytes), "reading a notice"));
    std::string text(static_cast<size_t>(bytes), '\0');
    SH_RETURN_IF_ERROR(MpiStatus(MPI_Recv(text.data(), bytes, MPI_BYTE, about.MPI_SOURCE,
                                          kNoticeTag, comm_, MPI_STATUS_IGNORE),
                                 "reading a notice"));
    return text;
  }

 private:
  const MPI_Comm comm_;  // given back by MPI_Finalize
  const int rank_, size_;
};

// Until `request` is over; the caller keeps what it writes to when it is not.
absl::Status Await(MPI_Request request, absl::Duration deadline, absl::string_view what) {
  const absl::Duration until = SystemClock().Now() + deadline;
  for (;;) {
    int over = 0;
    {
      MutexLock lock(MpiMutex());
      SH_RETURN_IF_ERROR(MpiStatus(MPI_Test(&request, &over, MPI_STATUS_IGNORE), what));
    }
    if (over != 0) return absl::OkStatus();
    if (SystemClock().Now() > until) {
      return absl::DeadlineExceededError(absl::StrCat(
          "MPI: ", what, ": a rank did not come within ", absl::FormatDuration(deadline)));
    }
    std::this_thread::yield();
  }
}

class MpiWorldImpl final : public MpiWorld {
 public:
  MpiWorldImpl(int rank, int size) : rank_(rank), size_(size) {}

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  absl::StatusOr<std::unique_ptr<Communicator>> MakeCommunicator(
      const MessageOptions& options) override {
    auto& comm = *new MPI_Comm(MPI_COMM_NULL);  // MPI writes to it whenever it likes
    MPI_Request request = MPI_REQUEST_NULL;
    {
      MutexLock lock(MpiMutex());
      SH_RETURN_IF_ERROR(
          MpiStatus(MPI_Comm_idup(MPI_COMM_WORLD, &comm, &request), "making a communicator"));
    }
    SH_RETURN_IF_ERROR(Await(request, options.deadline, "making a communicator"));
    {
      MutexLock lock(MpiMutex());
      SH_RETURN_IF_ERROR(
          MpiStatus(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN), "making a communicator"));
    }
    return MakeMessageCommunicator(std::make_unique<MpiLayer>(comm, rank_, size_), options);
  }

  absl::Status Close(absl::Duration deadline) override {
    MPI_Request request = MPI_REQUEST_NULL;
    {
      MutexLock lock(MpiMutex());
      SH_RETURN_IF_ERROR(MpiStatus(MPI_Ibarrier(MPI_COMM_WORLD, &request), "closing"));
    }
    SH_RETURN_IF_ERROR(Await(request, deadline, "closing"));
    MutexLock lock(MpiMutex());
    return MpiStatus(MPI_Finalize(), "closing");
  }

 private:
  const int rank_, size_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<MpiWorld>> MpiWorld::Init() {
  MutexLock lock(MpiMutex());
  int before = 0;
  SH_RETURN_IF_ERROR(MpiStatus(MPI_Initialized(&before), "starting"));
  if (before != 0) return absl::FailedPreconditionError("MPI: it was started before");
  int granted = MPI_THREAD_SINGLE;
  SH_RETURN_IF_ERROR(
      MpiStatus(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &granted), "starting"));
  SH_RETURN_IF_ERROR(
      MpiStatus(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "starting"));
  if (granted < MPI_THREAD_SERIALIZED) {
    return absl::FailedPreconditionError(
        "MPI: it was built without support for threads (MPI_THREAD_SERIALIZED)");
  }
  int rank = 0, size = 0;
  SH_RETURN_IF_ERROR(MpiStatus(MPI_Comm_rank(MPI_COMM_WORLD, &rank), "starting"));
  SH_RETURN_IF_ERROR(MpiStatus(MPI_Comm_size(MPI_COMM_WORLD, &size), "starting"));
  return std::unique_ptr<MpiWorld>(std::make_unique<MpiWorldImpl>(rank, size));
}

}  // namespace stillhouse

#include "sharding/communicator.h"

namespace stillhouse {
namespace {

absl::Status Absent() {
  return absl::UnimplementedError(
      "NCCL is not in this build: install the CUDA toolkit and NCCL (nccl.h, libnccl) and "
      "configure "
      "again");
}

}  // namespace

absl::StatusOr<NcclId> MakeNcclId() { return Absent(); }

absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(const NcclId&, int, int, int,
                                                                   absl::Duration) {
  return Absent();
}

}  // namespace stillhouse

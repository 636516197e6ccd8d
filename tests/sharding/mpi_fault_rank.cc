// One rank of a step that goes wrong: mpi_fault_rank FAULT FOLDER DEADLINE_MS
//
// All ranks meet; then the last one is at fault, and the others reduce. Each writes its exit into
// FOLDER, where it lives to do so. `elapsed` there says how long the first rank waited.
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/file.h"
#include "common/status.h"
#include "sharding/mpi_world.h"
#include "sharding/rank_exit.h"

namespace stillhouse {
namespace {

absl::Status Finish(Communicator::Pending pending) {
  SH_RETURN_IF_ERROR(pending.status());
  return (*pending)->Wait();
}

// What the rank at fault does instead of reducing.
absl::Status Fail(const std::string& fault, Communicator& communicator, TensorView values) {
  if (fault == "hung") {
    for (;;) pause();
  }
  if (fault == "killed") raise(SIGKILL);
  if (fault == "failed") return absl::ResourceExhaustedError("writing a shard: disk full");
  if (fault == "aborted") {
    communicator.Abort();
    for (;;) pause();
  }
  if (fault == "mismatched") return Finish(communicator.Broadcast(values, 0));
  return absl::InvalidArgumentError(fault);
}

absl::Status Step(const std::string& fault, const std::string& folder, MpiWorld& world,
                  absl::Duration deadline) {
  SH_ASSIGN_OR_RETURN(const auto communicator, world.MakeCommunicator({.deadline = deadline}));
  SH_RETURN_IF_ERROR(Finish(communicator->Barrier()));
  auto& values = *new std::vector<float>(1'000'003, 1.0f);  // outlives the step, as it must
  const TensorView view = {values.data(), values.size(), DType::kF32, Device::kCpu, nullptr};
  if (world.rank() == world.size() - 1 && fault != "none") {
    return Fail(fault, *communicator, view);
  }
  const absl::Duration began = SystemClock().Now();
  const absl::Status reduced = Finish(communicator->AllReduceSum(view));
  if (world.rank() == 0) {
    SH_RETURN_IF_ERROR(
        WriteFileAtomically(JoinPath(folder, "elapsed"),
                            absl::StrCat(absl::ToInt64Milliseconds(SystemClock().Now() - began))));
  }
  SH_RETURN_IF_ERROR(reduced);
  return world.Close(deadline);
}

int Run(int argc, char** argv) {
  if (argc != 4) return kExitUsage;
  auto world = MpiWorld::Init();
  if (!world.ok()) {
    std::fprintf(stderr, "%s\n", world.status().ToString().c_str());
    return 1;
  }
  const std::string folder = argv[2];
  const absl::Status status =
      Step(argv[1], folder, **world, absl::Milliseconds(std::atoi(argv[3])));
  const RankExit exit{status, ExitCodeFor(status)};
  if (!status.ok()) LeaveWithRankExit(folder, (*world)->rank(), exit);
  const absl::Status written = WriteRankExit(folder, (*world)->rank(), exit);
  return written.ok() ? 0 : 1;
}

}  // namespace
}  // namespace stillhouse

int main(int argc, char** argv) { return stillhouse::Run(argc, argv); }

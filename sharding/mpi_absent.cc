#include "sharding/mpi_world.h"

namespace stillhouse {

absl::StatusOr<std::unique_ptr<MpiWorld>> MpiWorld::Init() {
  return absl::UnimplementedError(
      "MPI is not in this build: install an MPI with its headers (Debian: libopenmpi-dev, "
      "openmpi-bin) and configure again with STILLHOUSE_MPI=ON");
}

}  // namespace stillhouse

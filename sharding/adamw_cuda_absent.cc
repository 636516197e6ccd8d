#include "sharding/adamw.h"

namespace stillhouse {

absl::StatusOr<std::unique_ptr<AdamWBackend>> MakeCudaAdamW() {
  return absl::UnimplementedError(
      "AdamW on a GPU is not in this build: install the CUDA toolkit (nvcc) and configure again");
}

}  // namespace stillhouse

// Work on the blocks of a model's weights by several threads.
#pragma once

#include <cstddef>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

namespace stillhouse {

inline constexpr unsigned kBlockThreadsMax = 16;  // disks and memory give no more

// Calls work(i) once for each i below `count`, in about rising order, on as many threads as there
// are cores (the caller's among them), at most kBlockThreadsMax; returns when all are done. After
// an error no further block is begun, and the error of the lowest block is returned.
absl::Status ForEachBlock(size_t count, absl::FunctionRef<absl::Status(size_t)> work);

}  // namespace stillhouse

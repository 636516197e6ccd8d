// ParallelFor: a loop over LibTorch's own threads, so that there is one pool of them in a process.
#pragma once

#include <cstdint>

#include "absl/functional/function_ref.h"

namespace stillhouse {

// Calls `body(b, e)` for ranges that cover [begin, end) exactly, each at least `grain` long where
// that is possible, on up to ComputeThreads() threads; returns when all have. `body` must not
// throw. Nested calls run on the calling thread.
void ParallelFor(int64_t begin, int64_t end, int64_t grain,
                 absl::FunctionRef<void(int64_t, int64_t)> body);

// The number of threads that ATen and ParallelFor use. Set it once, in a main, before the first
// use.
void SetComputeThreads(int threads);
int ComputeThreads();
// Called first on a thread that will run the model: OpenMP keeps its number of threads per thread.
void AdoptComputeThreads();

}  // namespace stillhouse

#include "model/parallel.h"

#include "ATen/Parallel.h"

namespace stillhouse {

void ParallelFor(int64_t begin, int64_t end, int64_t grain,
                 absl::FunctionRef<void(int64_t, int64_t)> body) {
  at::parallel_for(begin, end, grain, [body](int64_t b, int64_t e) { body(b, e); });
}

void SetComputeThreads(int threads) { at::set_num_threads(threads); }
int ComputeThreads() { return at::get_num_threads(); }
void AdoptComputeThreads() { at::init_num_threads(); }

}  // namespace stillhouse

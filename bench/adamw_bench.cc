// AdamW over flat buffers, one thread: parameters per second.
//
// AdamWStep     fp32 masters, moments and gradients, bf16 weights written in the same pass
// SumOfSquares  the global gradient norm that clipping needs
#include <benchmark/benchmark.h>

#include <vector>

#include "common/status.h"
#include "sharding/adamw.h"

namespace stillhouse {
namespace {

constexpr size_t kParameters = 16'000'000;

TensorView View(std::vector<float>& values) {
  return {.data = values.data(), .count = values.size(), .dtype = DType::kF32};
}

void AdamWStep(benchmark::State& state) {
  std::vector<float> masters(kParameters, 0.1f), first(kParameters), second(kParameters);
  std::vector<float> gradients(kParameters, 1e-3f);
  std::vector<uint16_t> weights(kParameters);
  const AdamWBuffers buffers = {
      .masters = View(masters),
      .first = View(first),
      .second = View(second),
      .gradients = View(gradients),
      .weights = {.data = weights.data(), .count = kParameters, .dtype = DType::kBF16}};
  const auto backend = MakeCpuAdamW();
  uint64_t step = 0;
  for (auto _ : state) {
    const AdamWScalars scalars = AdamWScalarsFor({}, ++step, /*learning_rate=*/5e-4,
                                                 /*gradient_scale=*/1.0);
    SH_CHECK_OK(backend->Step(buffers, scalars, RunSerially));
  }
  state.SetItemsProcessed(static_cast<int64_t>(state.iterations() * kParameters));
}
BENCHMARK(AdamWStep);

void SumOfSquaresOfGradients(benchmark::State& state) {
  const std::vector<float> gradients(kParameters, 1e-3f);
  for (auto _ : state) benchmark::DoNotOptimize(SumOfSquares(gradients, RunSerially));
  state.SetItemsProcessed(static_cast<int64_t>(state.iterations() * kParameters));
}
BENCHMARK(SumOfSquaresOfGradients)->Name("SumOfSquares");

}  // namespace
}  // namespace stillhouse

// Timed pieces of a training step, for tools/bench.py, which alternates them with PyTorch's. Prints
// one line of JSON.
//
//   kernel_bench copy PARAMETERS TIMES    memory copied within the process: {"bytes", "seconds"}, a
//                                         byte counted when read and when written
//   kernel_bench adamw PARAMETERS TIMES   AdamW over flat buffers: {"bytes", "seconds",
//                                         "parameters"}; 30 bytes a parameter: masters, moments and
//                                         gradients read, masters, moments and bf16 weights written
//   kernel_bench loss ROWS TIMES          HeadLoss, cross-entropy, with SmolLM2's head (49,152 by
//                                         576) in bf16: {"rows", "seconds", "peak_bytes"}, the last
//                                         what the first pass added to the process's memory
//
// Threads are OMP_NUM_THREADS'.
#include <fcntl.h>
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "ATen/ops/empty.h"
#include "ATen/ops/randint.h"
#include "ATen/ops/randn.h"
#include "absl/functional/function_ref.h"
#include "absl/strings/numbers.h"
#include "common/status.h"
#include "sharding/adamw.h"
#include "sharding/flat_buffer.h"
#include "student/losses/head_loss.h"
#include "student/stepper.h"

namespace stillhouse {
namespace {

constexpr int64_t kVocabulary = 49'152, kHidden = 576;

double Seconds(int64_t times, absl::FunctionRef<void()> body) {
  const auto start = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < times; ++i) body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

nlohmann::json Copy(int64_t parameters, int64_t times) {
  const auto n = static_cast<size_t>(parameters);
  FlatBuffer<float> from(n), to(n);
  const auto copy = [&] {
    RunOnComputeThreads(n, [&](size_t begin, size_t end) {
      std::memcpy(to.data() + begin, from.data() + begin, (end - begin) * sizeof(float));
    });
  };
  copy();
  const double seconds = Seconds(times, copy);
  return {{"bytes", 2 * sizeof(float) * n * static_cast<size_t>(times)}, {"seconds", seconds}};
}

nlohmann::json AdamW(int64_t parameters, int64_t times) {
  const auto n = static_cast<size_t>(parameters);
  FlatBuffer<float> masters(n), first(n), second(n), gradients(n);
  FlatBuffer<uint16_t> weights(n);
  const auto view = [n](FlatBuffer<float>& buffer) {
    std::fill_n(buffer.data(), n, 1e-3f);
    return TensorView{.data = buffer.data(), .count = n, .dtype = DType::kF32};
  };
  const AdamWBuffers buffers = {
      .masters = view(masters),
      .first = view(first),
      .second = view(second),
      .gradients = view(gradients),
      .weights = {.data = weights.data(), .count = n, .dtype = DType::kBF16}};
  const auto backend = MakeCpuAdamW();
  uint64_t number = 0;
  const auto step = [&] {
    const AdamWScalars scalars =
        AdamWScalarsFor({}, ++number, /*learning_rate=*/5e-4, /*gradient_scale=*/1.0);
    SH_CHECK_OK(backend->Step(buffers, scalars, RunOnComputeThreads));
  };
  step();
  const double seconds = Seconds(times, step);
  return {{"bytes", 30 * n * static_cast<size_t>(times)},
          {"parameters", n * static_cast<size_t>(times)},
          {"seconds", seconds}};
}

int64_t PeakBytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmHWM:", 0) == 0) return std::strtoll(line.c_str() + 6, nullptr, 10) << 10;
  }
  return 0;
}

// From now on PeakBytes counts anew.
void ResetPeak() {
  const int fd = ::open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
  SH_CHECK(fd >= 0 && ::write(fd, "5", 1) == 1);
  ::close(fd);
}

nlohmann::json Loss(int64_t rows, int64_t times) {
  const auto bf16 = at::TensorOptions().dtype(at::kBFloat16);
  const at::Tensor head = at::randn({kVocabulary, kHidden}, bf16);
  const at::Tensor hidden = at::randn({rows, kHidden}, bf16);
  const at::Tensor labels = at::randint(kVocabulary, {rows}, at::TensorOptions().dtype(at::kInt));
  RowTargets targets;
  targets.labels = {labels.data_ptr<int32_t>(), static_cast<size_t>(rows)};
  HeadLoss loss({{LossKind::kCrossEntropy}}, kVocabulary, {});
  std::vector<std::vector<float>> values(1);
  HeadGradients gradients;
  const double coefficient = 1.0 / static_cast<double>(rows);
  const auto pass = [&] {
    SH_CHECK_OK(loss.Run(hidden, head, targets, {&coefficient, 1}, gradients, &values));
  };
  ResetPeak();
  const int64_t before = PeakBytes();
  gradients.hidden = at::empty({rows, kHidden}, bf16);
  gradients.head = at::empty({kVocabulary, kHidden}, at::TensorOptions().dtype(at::kFloat));
  pass();
  const int64_t peak = PeakBytes() - before;
  const double seconds = Seconds(times, pass);
  return {{"rows", rows * times}, {"seconds", seconds}, {"peak_bytes", peak}};
}

int Main(int argc, char** argv) {
  int64_t size = 0, times = 0;
  const std::string mode = argc == 4 ? argv[1] : "";
  const bool known = mode == "copy" || mode == "adamw" || mode == "loss";
  if (!known || !absl::SimpleAtoi(argv[2], &size) || !absl::SimpleAtoi(argv[3], &times) ||
      size < 1 || times < 1) {
    std::fprintf(stderr, "usage: kernel_bench copy|adamw|loss SIZE TIMES\n");
    return 2;
  }
  // As student_trainer does: what LibTorch's products take and give back stays in the process.
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  const nlohmann::json result = mode == "copy"    ? Copy(size, times)
                                : mode == "adamw" ? AdamW(size, times)
                                                  : Loss(size, times);
  std::printf("%s\n", result.dump().c_str());
  return 0;
}

}  // namespace
}  // namespace stillhouse

int main(int argc, char** argv) { return stillhouse::Main(argc, argv); }

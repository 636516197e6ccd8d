// AdamW over flat buffers: fp32 masters and moments, and the bf16 weights that the forward pass
// reads, written in the same pass.
//
// Threads: an AdamW is used by one thread at a time; it spreads over others only through the
// RangeRunner it is given. Determinism: element by element, so the bits depend neither on the split
// nor on the instruction set.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/tensor_view.h"
#include "sharding/adamw_math.h"

namespace stillhouse {

// Calls `body(begin, end)` over disjoint ranges that cover [0, n), on any threads, and returns when
// all are done.
using RangeBody = absl::FunctionRef<void(size_t begin, size_t end)>;
using RangeRunner = absl::FunctionRef<void(size_t n, RangeBody body)>;
void RunSerially(size_t n, RangeBody body);

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.95;
  double epsilon = 1e-8;
  double weight_decay = 0.01;  // on every parameter, as torch.optim.AdamW does
};

// REQUIRES: step >= 1.
AdamWScalars AdamWScalarsFor(const AdamWOptions& options, uint64_t step, double learning_rate,
                             double gradient_scale);

// What one step reads and writes; all of one length, on the device of the backend. `weights` may
// have count 0: the model then reads the masters.
struct AdamWBuffers {
  TensorView masters;    // fp32
  TensorView first;      // fp32
  TensorView second;     // fp32
  TensorView gradients;  // fp32
  TensorView weights;    // bf16, or empty
};

class AdamWBackend {
 public:
  virtual ~AdamWBackend() = default;
  // InvalidArgument when lengths, dtypes or devices are not as AdamWBuffers says.
  virtual absl::Status Step(const AdamWBuffers& buffers, const AdamWScalars& scalars,
                            RangeRunner run) = 0;
};

std::unique_ptr<AdamWBackend> MakeCpuAdamW();
// Runs on the buffers' CUDA stream; `run` is not used. Unimplemented, naming what to
// build, in a build without CUDA; Unavailable without a device.
absl::StatusOr<std::unique_ptr<AdamWBackend>> MakeCudaAdamW();

namespace internal {
absl::Status CheckAdamWBuffers(const AdamWBuffers& buffers, Device device);
}  // namespace internal

// Sum of squares in double, in blocks of a fixed size that are added in order: the same bits
// however `run` splits. NaN or infinity if any element is.
double SumOfSquares(absl::Span<const float> values, RangeRunner run);

// The factor that brings a gradient of global norm `norm` down to `clip`; 1 if it is within, or if
// `clip` is 0 (no clipping).
double ClipScale(double norm, double clip);

}  // namespace stillhouse

#include <cuda_runtime.h>

#include "absl/strings/str_cat.h"
#include "sharding/adamw.h"

namespace stillhouse {
namespace {

constexpr int kThreads = 256;
constexpr size_t kBlocksMax = 1 << 16;  // the grid strides over the rest

__global__ void AdamWKernel(const float* gradients, const AdamWScalars scalars, float* masters,
                            float* first, float* second, uint16_t* weights, size_t n) {
  const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride) {
    AdamWElement(gradients[i], scalars, &masters[i], &first[i], &second[i]);
    if (weights != nullptr) weights[i] = RoundToBf16(masters[i]);
  }
}

class CudaAdamW final : public AdamWBackend {
 public:
  absl::Status Step(const AdamWBuffers& b, const AdamWScalars& scalars, RangeRunner) override {
    const absl::Status checked = internal::CheckAdamWBuffers(b, Device::kCuda);
    if (!checked.ok()) return checked;
    const size_t n = b.masters.count;
    if (n == 0) return absl::OkStatus();
    size_t blocks = (n + kThreads - 1) / kThreads;
    if (blocks > kBlocksMax) blocks = kBlocksMax;
    AdamWKernel<<<static_cast<unsigned>(blocks), kThreads, 0,
                  static_cast<cudaStream_t>(b.masters.stream)>>>(
        static_cast<const float*>(b.gradients.data), scalars, static_cast<float*>(b.masters.data),
        static_cast<float*>(b.first.data), static_cast<float*>(b.second.data),
        b.weights.count == 0 ? nullptr : static_cast<uint16_t*>(b.weights.data), n);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) {
      return absl::InternalError(absl::StrCat("AdamW on the GPU: ", cudaGetErrorString(error)));
    }
    return absl::OkStatus();
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<AdamWBackend>> MakeCudaAdamW() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess || devices == 0) {
    return absl::UnavailableError(
        absl::StrCat("AdamW on the GPU: no CUDA device: ", cudaGetErrorString(error)));
  }
  return std::unique_ptr<AdamWBackend>(new CudaAdamW());
}

}  // namespace stillhouse

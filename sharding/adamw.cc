#include "sharding/adamw.h"

#include <cmath>
#include <vector>

#include "common/status.h"

namespace stillhouse {

void RunSerially(size_t n, RangeBody body) {
  if (n > 0) body(0, n);
}

AdamWScalars AdamWScalarsFor(const AdamWOptions& options, uint64_t step, double learning_rate,
                             double gradient_scale) {
  SH_CHECK(step >= 1);
  const double t = static_cast<double>(step);
  AdamWScalars scalars;
  scalars.gradient_scale = static_cast<float>(gradient_scale);
  scalars.beta1 = static_cast<float>(options.beta1);
  scalars.one_minus_beta1 = static_cast<float>(1 - options.beta1);
  scalars.beta2 = static_cast<float>(options.beta2);
  scalars.one_minus_beta2 = static_cast<float>(1 - options.beta2);
  scalars.decay = static_cast<float>(1 - learning_rate * options.weight_decay);
  scalars.step_size = static_cast<float>(learning_rate / (1 - std::pow(options.beta1, t)));
  scalars.root_correction = static_cast<float>(1 / std::sqrt(1 - std::pow(options.beta2, t)));
  scalars.epsilon = static_cast<float>(options.epsilon);
  return scalars;
}

namespace internal {

absl::Status CheckAdamWBuffers(const AdamWBuffers& b, Device device) {
  const size_t n = b.masters.count;
  for (const TensorView* view : {&b.masters, &b.first, &b.second, &b.gradients}) {
    if (view->count != n || view->dtype != DType::kF32 || view->device != device) {
      return absl::InvalidArgumentError(
          "AdamW: masters, moments and gradients must be fp32, of one length, on the backend's "
          "device");
    }
  }
  if (b.weights.count != 0 &&
      (b.weights.count != n || b.weights.dtype != DType::kBF16 || b.weights.device != device)) {
    return absl::InvalidArgumentError(
        "AdamW: weights must be empty, or bf16 and as long as the masters, on the backend's "
        "device");
  }
  return absl::OkStatus();
}

}  // namespace internal

namespace {

// Not under ThreadSanitizer: the loader's choice runs before the sanitizer is set up, and crashes.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__)
// One binary for every machine: the loader picks the widest copy that the processor runs.
#define SH_VECTOR_CLONES __attribute__((target_clones("default", "avx2", "arch=x86-64-v4")))
#else
#define SH_VECTOR_CLONES
#endif

SH_VECTOR_CLONES
void StepRange(const float* __restrict gradients, const AdamWScalars scalars,
               float* __restrict masters, float* __restrict first, float* __restrict second,
               size_t n) {
  for (size_t i = 0; i < n; ++i) {
    AdamWElement(gradients[i], scalars, &masters[i], &first[i], &second[i]);
  }
}

SH_VECTOR_CLONES
void StepRangeWithWeights(const float* __restrict gradients, const AdamWScalars scalars,
                          float* __restrict masters, float* __restrict first,
                          float* __restrict second, uint16_t* __restrict weights, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    AdamWElement(gradients[i], scalars, &masters[i], &first[i], &second[i]);
    weights[i] = RoundToBf16(masters[i]);
  }
}

class CpuAdamW final : public AdamWBackend {
 public:
  absl::Status Step(const AdamWBuffers& buffers, const AdamWScalars& scalars,
                    RangeRunner run) override {
    SH_RETURN_IF_ERROR(internal::CheckAdamWBuffers(buffers, Device::kCpu));
    const auto* gradients = static_cast<const float*>(buffers.gradients.data);
    auto* masters = static_cast<float*>(buffers.masters.data);
    auto* first = static_cast<float*>(buffers.first.data);
    auto* second = static_cast<float*>(buffers.second.data);
    auto* weights = static_cast<uint16_t*>(buffers.weights.data);
    const bool with_weights = buffers.weights.count != 0;
    run(buffers.masters.count, [&](size_t begin, size_t end) {
      if (with_weights) {
        StepRangeWithWeights(gradients + begin, scalars, masters + begin, first + begin,
                             second + begin, weights + begin, end - begin);
      } else {
        StepRange(gradients + begin, scalars, masters + begin, first + begin, second + begin,
                  end - begin);
      }
    });
    return absl::OkStatus();
  }
};

// Small enough that a block's sum in eight double lanes is exact to the last bits, large enough
// that the list of sums is short.
constexpr size_t kNormBlock = 1 << 16;
constexpr size_t kNormLanes = 16;

SH_VECTOR_CLONES
double BlockSumOfSquares(const float* values, size_t n) {
  double lanes[kNormLanes] = {};
  size_t i = 0;
  for (; i + kNormLanes <= n; i += kNormLanes) {
    for (size_t lane = 0; lane < kNormLanes; ++lane) {
      const double value = values[i + lane];
      lanes[lane] += value * value;
    }
  }
  for (size_t lane = 0; i < n; ++i, ++lane) {
    const double value = values[i];
    lanes[lane] += value * value;
  }
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

}  // namespace

std::unique_ptr<AdamWBackend> MakeCpuAdamW() { return std::make_unique<CpuAdamW>(); }

double SumOfSquares(absl::Span<const float> values, RangeRunner run) {
  const size_t blocks = (values.size() + kNormBlock - 1) / kNormBlock;
  std::vector<double> sums(blocks);
  run(blocks, [&](size_t begin, size_t end) {
    for (size_t block = begin; block < end; ++block) {
      const size_t from = block * kNormBlock;
      sums[block] =
          BlockSumOfSquares(values.data() + from, std::min(kNormBlock, values.size() - from));
    }
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

double ClipScale(double norm, double clip) { return clip > 0 && norm > clip ? clip / norm : 1.0; }

}  // namespace stillhouse

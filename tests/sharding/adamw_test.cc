#include "sharding/adamw.h"

#include <cmath>
#include <limits>
#include <thread>
#include <vector>

#include "common/random.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace stillhouse {
namespace {

using ::testing::HasSubstr;

TensorView F32(std::vector<float>& values) {
  return {values.data(), values.size(), DType::kF32, Device::kCpu, nullptr};
}

// Splits into ranges of unequal size over two threads.
void RunSplit(size_t n, RangeBody body) {
  const size_t middle = n / 3;
  std::thread other([&] { body(middle, n); });
  body(0, middle);
  other.join();
}

struct Problem {
  std::vector<float> masters, first, second, gradients;
  std::vector<uint16_t> weights;
  explicit Problem(size_t n) : masters(n), first(n), second(n), gradients(n), weights(n) {
    RandomStream random(11);
    for (float& value : masters) value = static_cast<float>(random.NextNormal());
  }
  void DrawGradients(uint64_t step) {
    RandomStream random(12, step);
    for (float& value : gradients) value = static_cast<float>(random.NextNormal() * 0.01);
  }
  AdamWBuffers Buffers() {
    return {F32(masters),
            F32(first),
            F32(second),
            F32(gradients),
            {weights.data(), weights.size(), DType::kBF16, Device::kCpu, nullptr}};
  }
};

// AdamW in double, written from the paper: theta <- theta - lr (m^ / (sqrt(v^) + eps) + wd theta).
struct Reference {
  std::vector<double> theta, m, v;
  void Step(const AdamWOptions& o, uint64_t t, double lr, double scale,
            const std::vector<float>& gradients) {
    for (size_t i = 0; i < theta.size(); ++i) {
      const double g = gradients[i] * scale;
      m[i] = o.beta1 * m[i] + (1 - o.beta1) * g;
      v[i] = o.beta2 * v[i] + (1 - o.beta2) * g * g;
      const double m_hat = m[i] / (1 - std::pow(o.beta1, t));
      const double v_hat = v[i] / (1 - std::pow(o.beta2, t));
      theta[i] -= lr * (m_hat / (std::sqrt(v_hat) + o.epsilon) + o.weight_decay * theta[i]);
    }
  }
};

TEST(AdamWTest, FollowsADoubleReference) {
  constexpr size_t kCount = 1003;  // no multiple of any vector
  Problem problem(kCount);
  Reference reference{{problem.masters.begin(), problem.masters.end()},
                      std::vector<double>(kCount),
                      std::vector<double>(kCount)};
  const AdamWOptions options{0.9, 0.95, 1e-8, 0.1};
  auto adamw = MakeCpuAdamW();
  for (uint64_t step = 1; step <= 50; ++step) {
    problem.DrawGradients(step);
    const AdamWScalars scalars = AdamWScalarsFor(options, step, /*learning_rate=*/1e-2, 0.5);
    ASSERT_TRUE(adamw->Step(problem.Buffers(), scalars, RunSplit).ok());
    reference.Step(options, step, 1e-2, 0.5, problem.gradients);
  }
  for (size_t i = 0; i < kCount; ++i) {
    ASSERT_NEAR(problem.masters[i], reference.theta[i], 1e-5) << i;
    ASSERT_NEAR(problem.first[i], reference.m[i], 1e-8) << i;
    ASSERT_NEAR(problem.second[i], reference.v[i], 1e-10) << i;
    ASSERT_EQ(problem.weights[i], FloatToBf16(problem.masters[i])) << i;
  }
}

TEST(AdamWTest, BitsDoNotDependOnTheSplit) {
  Problem split(4099), whole(4099);
  auto adamw = MakeCpuAdamW();
  for (uint64_t step = 1; step <= 5; ++step) {
    split.DrawGradients(step);
    whole.DrawGradients(step);
    const AdamWScalars scalars = AdamWScalarsFor({}, step, 1e-3, 1.0);
    ASSERT_TRUE(adamw->Step(split.Buffers(), scalars, RunSplit).ok());
    ASSERT_TRUE(adamw->Step(whole.Buffers(), scalars, RunSerially).ok());
  }
  EXPECT_EQ(split.masters, whole.masters);
  EXPECT_EQ(split.first, whole.first);
  EXPECT_EQ(split.second, whole.second);
  EXPECT_EQ(split.weights, whole.weights);
}

TEST(AdamWTest, RefusesBuffersThatDoNotMatch) {
  Problem problem(64);
  auto adamw = MakeCpuAdamW();
  AdamWBuffers buffers = problem.Buffers();
  buffers.gradients.count = 63;
  EXPECT_EQ(adamw->Step(buffers, {}, RunSerially).code(), absl::StatusCode::kInvalidArgument);
  buffers = problem.Buffers();
  buffers.weights.dtype = DType::kF32;
  EXPECT_EQ(adamw->Step(buffers, {}, RunSerially).code(), absl::StatusCode::kInvalidArgument);
  buffers = problem.Buffers();
  buffers.masters.device = Device::kCuda;
  EXPECT_EQ(adamw->Step(buffers, {}, RunSerially).code(), absl::StatusCode::kInvalidArgument);
}

TEST(AdamWTest, RoundsToBf16AsTheHostDoes) {
  RandomStream random(3);
  for (int i = 0; i < 100000; ++i) {
    const uint32_t bits = random.Next32();
    float value;
    memcpy(&value, &bits, sizeof(value));
    ASSERT_EQ(RoundToBf16(value), FloatToBf16(value)) << bits;
  }
}

TEST(AdamWTest, AGpuIsUsedOrRefusedByName) {
  const auto cuda = MakeCudaAdamW();
  if (!cuda.ok()) {
    EXPECT_THAT(std::string(cuda.status().message()), HasSubstr("GPU"));
    EXPECT_TRUE(absl::IsUnimplemented(cuda.status()) || absl::IsUnavailable(cuda.status()));
  }
}

TEST(GradientNormTest, SumsInDoubleAndInOneOrder) {
  std::vector<float> values(1000003);
  RandomStream random(5);
  double exact = 0;
  for (float& value : values) {
    value = static_cast<float>(random.NextNormal());
    exact += static_cast<double>(value) * value;
  }
  const double serial = SumOfSquares(values, RunSerially);
  EXPECT_NEAR(serial, exact, exact * 1e-12);
  EXPECT_EQ(serial, SumOfSquares(values, RunSplit));
}

TEST(GradientNormTest, ShowsWhatIsNotFinite) {
  std::vector<float> values(100, 1.0f);
  values[99] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(SumOfSquares(values, RunSerially)));
}

TEST(GradientNormTest, ClipsOnlyWhatIsTooLong) {
  EXPECT_EQ(ClipScale(0.5, 1.0), 1.0);
  EXPECT_EQ(ClipScale(4.0, 1.0), 0.25);
  EXPECT_EQ(ClipScale(4.0, 0.0), 1.0);
}

}  // namespace
}  // namespace stillhouse

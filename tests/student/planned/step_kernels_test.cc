// The elementwise kernels of a planned step against double. Widths around a vector; strides wider
// than the rows.

#include "student/planned/step_kernels.h"

#include <cmath>
#include <vector>

#include "common/random.h"
#include "common/tensor_view.h"
#include "gtest/gtest.h"
#include "model/parallel.h"
#include "tests/student/planned/random_values.h"

namespace stillhouse::planned {
namespace {

constexpr int64_t kRows = 70;  // two parts of a norm's weight gradient
constexpr double kEps = 1e-5;

template <typename T>
class StepKernelsTest : public testing::Test {
 protected:
  void SetUp() override { SetComputeThreads(2); }
  // Of one rounding to T, of values around 1; a few roundings come together.
  static constexpr double kStep = sizeof(T) == 2 ? 0x1p-7 : 2e-6;
  static void ExpectNear(double got, double wanted) {
    ASSERT_NEAR(got, wanted, kStep * (1 + std::abs(wanted)));
  }
};
using Types = testing::Types<float, uint16_t>;
TYPED_TEST_SUITE(StepKernelsTest, Types);

TYPED_TEST(StepKernelsTest, NormAndItsGradient) {
  using T = TypeParam;
  for (const int64_t width : {7, 32, 75}) {
    const std::vector<float> x = Random<float>(kRows * width, 1);
    const std::vector<T> y = Random<T>(kRows * width, 2), w = Random<T>(width, 3);
    const std::vector<T> dy = Random<T>(kRows * width, 4);
    std::vector<float> sum(x.size()), rstd(kRows), dx(x.size(), 0.25f);
    std::vector<T> normed(x.size()), rounded(x.size());
    std::vector<float> parts(static_cast<size_t>(NormParts(kRows) * width)), dw(width, 3.0f);
    AddAndNorm(x.data(), y.data(), w.data(), static_cast<float>(kEps), kRows, width, sum.data(),
               normed.data(), rstd.data());
    NormBackward(sum.data(), w.data(), rstd.data(), dy.data(), /*add=*/true, kRows, width,
                 dx.data(), rounded.data(), parts.data());
    AddColumnSums(parts.data(), width, NormParts(kRows), width, /*add=*/false, dw.data());
    std::vector<double> wanted_dw(static_cast<size_t>(width));
    for (int64_t r = 0; r < kRows; ++r) {
      double squares = 0, dot = 0;
      for (int64_t j = 0; j < width; ++j) {
        const double s = x[r * width + j] + Widen(y[r * width + j]);
        this->ExpectNear(sum[r * width + j], s);
        squares += s * s;
        dot += s * Widen(w[j]) * Widen(dy[r * width + j]);
      }
      const double scale = 1 / std::sqrt(squares / static_cast<double>(width) + kEps);
      for (int64_t j = 0; j < width; ++j) {
        const int64_t at = r * width + j;
        const double h = sum[at] * scale;
        this->ExpectNear(Widen(normed[at]), h * Widen(w[j]));
        const double through =
            scale * (Widen(w[j]) * Widen(dy[at]) - h * dot * scale / static_cast<double>(width));
        ASSERT_NEAR(dx[at], 0.25 + through, 2e-5);
        this->ExpectNear(Widen(rounded[at]), dx[at]);
        wanted_dw[j] += h * Widen(dy[at]);
      }
    }
    for (int64_t j = 0; j < width; ++j) ASSERT_NEAR(dw[j], wanted_dw[j], 1e-4);
    // Without y, and written instead of added.
    AddAndNorm(sum.data(), static_cast<const T*>(nullptr), w.data(), static_cast<float>(kEps),
               kRows, width, nullptr, rounded.data(), rstd.data());
    EXPECT_EQ(rounded, normed);
    std::vector<float> written(x.size(), 9.0f);
    NormBackward(sum.data(), w.data(), rstd.data(), dy.data(), /*add=*/false, kRows, width,
                 written.data(), rounded.data(), parts.data());
    for (size_t i = 0; i < written.size(); ++i) ASSERT_NEAR(written[i] + 0.25, dx[i], 1e-5);
  }
}

TYPED_TEST(StepKernelsTest, NormOfHeadsAndItsGradient) {
  using T = TypeParam;
  constexpr int64_t kHeads = 3, kSize = 6, kStride = 20;
  const std::vector<T> x = Random<T>(kRows * kStride, 1), w = Random<T>(kSize, 2);
  const std::vector<T> dy = Random<T>(kRows * kStride, 3);
  std::vector<T> y(x.size()), dx = dy;
  std::vector<float> rstd(kRows * kHeads), parts(static_cast<size_t>(NormParts(kRows) * kSize));
  NormHeads(x.data(), kStride, w.data(), static_cast<float>(kEps), kRows, kHeads, kSize, y.data(),
            kStride, rstd.data());
  NormHeadsBackward(x.data(), kStride, w.data(), rstd.data(), kRows, kHeads, kSize, dx.data(),
                    kStride, parts.data());
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t h = 0; h < kHeads; ++h) {
      const int64_t begin = r * kStride + h * kSize;
      double squares = 0, dot = 0;
      for (int64_t j = 0; j < kSize; ++j) {
        squares += Widen(x[begin + j]) * Widen(x[begin + j]);
        dot += Widen(x[begin + j]) * Widen(w[j]) * Widen(dy[begin + j]);
      }
      const double scale = 1 / std::sqrt(squares / kSize + kEps);
      for (int64_t j = 0; j < kSize; ++j) {
        const double unit = Widen(x[begin + j]) * scale;
        this->ExpectNear(Widen(y[begin + j]), unit * Widen(w[j]));
        this->ExpectNear(Widen(dx[begin + j]),
                         scale * (Widen(w[j]) * Widen(dy[begin + j]) - unit * dot * scale / kSize));
      }
    }
    // What lies between the rows' heads and the next row is left alone.
    EXPECT_EQ(dx[r * kStride + kHeads * kSize], dy[r * kStride + kHeads * kSize]);
  }
}

TYPED_TEST(StepKernelsTest, RotationAndBack) {
  using T = TypeParam;
  constexpr int64_t kHeads = 2, kSize = 10, kStride = 23;
  const std::vector<T> x = Random<T>(kRows * kStride, 1);
  std::vector<float> cos(kRows * kSize / 2), sin(cos.size());
  std::vector<int32_t> position(kRows);
  for (int64_t r = 0; r < kRows; ++r) {
    position[r] = static_cast<int32_t>((r * 7) % kRows);
    for (int64_t j = 0; j < kSize / 2; ++j) {
      T rounded;
      Narrow(std::cos(0.3 * static_cast<double>(r * j)), &rounded);
      cos[r * kSize / 2 + j] = static_cast<float>(Widen(rounded));
      Narrow(std::sin(0.3 * static_cast<double>(r * j)), &rounded);
      sin[r * kSize / 2 + j] = static_cast<float>(Widen(rounded));
    }
  }
  std::vector<T> turned = x;
  RotateHeads(turned.data(), kStride, cos.data(), sin.data(), position.data(), /*inverse=*/false,
              kRows, kHeads, kSize);
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t h = 0; h < kHeads; ++h) {
      for (int64_t j = 0; j < kSize / 2; ++j) {
        const int64_t low = r * kStride + h * kSize + j, high = low + kSize / 2;
        const double c = cos[position[r] * kSize / 2 + j], s = sin[position[r] * kSize / 2 + j];
        this->ExpectNear(Widen(turned[low]), Widen(x[low]) * c - Widen(x[high]) * s);
        this->ExpectNear(Widen(turned[high]), Widen(x[high]) * c + Widen(x[low]) * s);
      }
    }
  }
  RotateHeads(turned.data(), kStride, cos.data(), sin.data(), position.data(), /*inverse=*/true,
              kRows, kHeads, kSize);
  for (size_t i = 0; i < x.size(); ++i) {
    ASSERT_NEAR(Widen(turned[i]), Widen(x[i]),
                4 * TestFixture::kStep * (1 + std::abs(Widen(x[i]))));
  }
}

TYPED_TEST(StepKernelsTest, SwiGluAndItsGradient) {
  using T = TypeParam;
  constexpr int64_t kWidth = 37, kStride = 2 * kWidth;
  const std::vector<T> both = Random<T>(kRows * kStride, 1), dy = Random<T>(kRows * kWidth, 2);
  std::vector<T> y(dy.size()), again(dy.size()), gradients = both;
  SwiGluRows(both.data() + kWidth, both.data(), kStride, kRows, kWidth, y.data());
  SwiGluRowsBackward(gradients.data() + kWidth, gradients.data(), kStride, dy.data(), kRows, kWidth,
                     again.data());
  EXPECT_EQ(y, again);
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t j = 0; j < kWidth; ++j) {
      const double up = Widen(both[r * kStride + j]), gate = Widen(both[r * kStride + kWidth + j]);
      const double d = Widen(dy[r * kWidth + j]), sigmoid = 1 / (1 + std::exp(-gate));
      this->ExpectNear(Widen(y[r * kWidth + j]), gate * sigmoid * up);
      this->ExpectNear(Widen(gradients[r * kStride + j]), d * gate * sigmoid);
      this->ExpectNear(Widen(gradients[r * kStride + kWidth + j]),
                       d * up * sigmoid * (1 + gate * (1 - sigmoid)));
    }
  }
}

TYPED_TEST(StepKernelsTest, RowsAndColumns) {
  using T = TypeParam;
  constexpr int64_t kWidth = 130;  // several threads' columns
  const std::vector<T> x = Random<T>(kRows * kWidth, 1), bias = Random<T>(kWidth, 2);
  std::vector<float> sums(kWidth, 1.0f);
  AddColumnSums(x.data(), kWidth, kRows, kWidth, /*add=*/true, sums.data());
  std::vector<T> filled(x.size());
  FillRows(bias.data(), kRows, kWidth - 1, filled.data(), kWidth);
  for (int64_t j = 0; j < kWidth; ++j) {
    double sum = 1;
    for (int64_t r = 0; r < kRows; ++r) {
      sum += Widen(x[r * kWidth + j]);
      ASSERT_EQ(filled[r * kWidth + j], j + 1 < kWidth ? bias[j] : T{0});
    }
    ASSERT_NEAR(sums[j], sum, 1e-4);
  }
  const std::vector<int64_t> picked = {0, 3, 69};
  std::vector<T> some(picked.size() * kWidth), spread(x.size(), T{1});
  PickRows(x.data(), picked.data(), 3, kWidth, some.data());
  SpreadRows(some.data(), picked.data(), 3, kRows, kWidth, spread.data());
  for (int64_t r = 0; r < kRows; ++r) {
    const bool kept = r == 0 || r == 3 || r == 69;
    for (int64_t j = 0; j < kWidth; ++j) {
      ASSERT_EQ(spread[r * kWidth + j], kept ? x[r * kWidth + j] : T{0});
    }
  }
  const std::vector<int64_t> ids = {5, 0, 5, 5};
  std::vector<float> rows(ids.size() * kWidth), table(6 * kWidth, 0.5f);
  GatherRows(x.data(), ids.data(), 4, kWidth, rows.data());
  AddToRows(ids.data(), rows.data(), 4, kWidth, table.data());
  for (int64_t j = 0; j < kWidth; ++j) {
    ASSERT_NEAR(table[5 * kWidth + j], 0.5 + 3 * Widen(x[5 * kWidth + j]), 1e-5);
    ASSERT_NEAR(table[j], 0.5 + Widen(x[j]), 1e-6);
    ASSERT_EQ(table[2 * kWidth + j], 0.5f);
  }
}

}  // namespace
}  // namespace stillhouse::planned

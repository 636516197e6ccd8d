#include "student/losses/row_kernels.h"

#include <cmath>
#include <vector>

#include "common/random.h"
#include "common/tensor_view.h"
#include "gtest/gtest.h"

namespace stillhouse {
namespace {

constexpr size_t kCount = 5003;  // several blocks and an odd rest

std::vector<float> Normals(uint64_t stream, double scale) {
  RandomStream random(7, stream);
  std::vector<float> values(kCount);
  for (float& value : values) value = static_cast<float>(random.NextNormal() * scale);
  return values;
}

TEST(RowKernelsTest, LoadsAndFindsTheLargestWhereverItLies) {
  std::vector<float> row = Normals(1, 3.0), out(kCount);
  for (const size_t place : {size_t{0}, size_t{17}, size_t{4999}, kCount - 1}) {
    std::vector<float> copy = row;
    copy[place] = 100;
    EXPECT_EQ(LoadRow(copy.data(), kCount, out.data()), 100.0f);
    EXPECT_EQ(out, copy);
    EXPECT_EQ(ArgMaxRow(copy.data(), kCount), place);
    std::vector<uint16_t> narrow(kCount);
    StoreRow(copy.data(), kCount, narrow.data());
    for (size_t i = 0; i < kCount; ++i) ASSERT_EQ(narrow[i], FloatToBf16(copy[i]));
    EXPECT_EQ(LoadRow(narrow.data(), kCount, out.data()), 100.0f);
    for (size_t i = 0; i < kCount; ++i) ASSERT_EQ(out[i], Bf16ToFloat(narrow[i]));
  }
}

TEST(RowKernelsTest, TheLowestOfEqualsWins) {
  std::vector<float> row(kCount, -1.0f);
  row[40] = row[41] = row[4000] = 2.0f;
  EXPECT_EQ(ArgMaxRow(row.data(), kCount), 40u);
}

TEST(RowKernelsTest, ExponentiatesToFloatAccuracy) {
  const std::vector<float> row = Normals(2, 20.0);
  std::vector<float> out(kCount);
  const float largest = LoadRow(row.data(), kCount, out.data());
  for (const float scale : {1.0f, 0.5f}) {
    const double sum = ExpRow(row.data(), kCount, largest, scale, out.data());
    double exact_sum = 0;
    for (size_t i = 0; i < kCount; ++i) {
      const double x = (static_cast<double>(row[i]) - largest) * scale;
      const double exact = x < -87.3 ? 0 : std::exp(x);
      exact_sum += exact;
      // The subtraction in fp32 loses up to |x| · 2^-24.
      ASSERT_NEAR(out[i], exact, exact * (3e-7 + std::abs(x) * 1.2e-7)) << x;
    }
    EXPECT_NEAR(sum, exact_sum, exact_sum * 1e-6);
  }
}

TEST(RowKernelsTest, SumsAgreeWithDouble) {
  const std::vector<float> weight = Normals(3, 1), a = Normals(4, 10), b = Normals(5, 10);
  double exact = 0, magnitude = 0;
  for (size_t i = 0; i < kCount; ++i) {
    const double term = static_cast<double>(weight[i]) * (static_cast<double>(a[i]) - b[i]);
    exact += term;
    magnitude += std::abs(term);
  }
  EXPECT_NEAR(WeightedDifference(weight.data(), a.data(), b.data(), kCount), exact,
              magnitude * 1e-7);
}

TEST(RowKernelsTest, JensenShannonAgreesWithDoubleAndIsNeverNegative) {
  for (const double distance : {0.0, 1e-4, 1e-2, 1.0, 30.0}) {
    std::vector<float> p = Normals(6, 4.0), q = p;
    const std::vector<float> noise = Normals(8, distance);
    for (size_t i = 0; i < kCount; ++i) q[i] += noise[i];
    std::vector<float> p_exp(kCount), q_exp(kCount);
    const float p_max = LoadRow(p.data(), kCount, p_exp.data());
    const float q_max = LoadRow(q.data(), kCount, q_exp.data());
    const double p_sum = ExpRow(p.data(), kCount, p_max, 1.0f, p_exp.data());
    const double q_sum = ExpRow(q.data(), kCount, q_max, 1.0f, q_exp.data());
    double exact = 0;
    for (size_t i = 0; i < kCount; ++i) {
      const double a = std::exp(static_cast<double>(p[i]) - p_max) / p_sum;
      const double b = std::exp(static_cast<double>(q[i]) - q_max) / q_sum;
      const double m = 0.5 * (a + b);
      if (a > 0) exact += 0.5 * a * std::log(a / m);
      if (b > 0) exact += 0.5 * b * std::log(b / m);
    }
    const double value = JensenShannonRow(p_exp.data(), static_cast<float>(1 / p_sum), q_exp.data(),
                                          static_cast<float>(1 / q_sum), kCount);
    EXPECT_GE(value, 0.0);
    EXPECT_NEAR(value, exact, 1e-7 + exact * 1e-5) << distance;
  }
}

TEST(RowKernelsTest, AccumulatesGradientsInFp32) {
  const std::vector<float> gradient = Normals(9, 1);
  std::vector<uint16_t> narrow(kCount);
  StoreRow(gradient.data(), kCount, narrow.data());
  std::vector<float> sum(kCount, 5.0f);
  AccumulateGradient(narrow.data(), kCount, /*first=*/true, sum.data());
  for (size_t i = 0; i < kCount; ++i) ASSERT_EQ(sum[i], Bf16ToFloat(narrow[i]));
  AccumulateGradient(gradient.data(), kCount, /*first=*/false, sum.data());
  for (size_t i = 0; i < kCount; ++i) {
    ASSERT_EQ(sum[i], Bf16ToFloat(narrow[i]) + gradient[i]);
  }
}

}  // namespace
}  // namespace stillhouse

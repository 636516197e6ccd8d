// Every kind of block product against double, over sizes around each block.

#include "student/planned/block_product.h"

#include <cmath>
#include <vector>

#include "common/random.h"
#include "common/tensor_view.h"
#include "gtest/gtest.h"
#include "tests/student/planned/random_values.h"

namespace stillhouse::planned {
namespace {

template <typename T>
void CheckProduct(ProductKind kind, int64_t m, int64_t n, int64_t k, bool columns) {
  const int64_t a_stride = RoundUp(k, kPanel) + 3, b_rows = columns ? n : k;
  const int64_t b_stride = (columns ? k : n) + 2, c_stride = RoundUp(n, kPanel);
  const std::vector<T> a = Random<T>((RoundUp(m, 16) + 1) * a_stride, 1);
  const std::vector<T> b = Random<T>(b_rows * b_stride, 2);
  std::vector<T> packed(static_cast<size_t>(PackedSize(k, n)));
  if (columns) {
    PackColumns(kind, b.data(), b_stride, k, n, packed.data());
  } else {
    PackRows(kind, b.data(), b_stride, k, n, packed.data());
  }
  std::vector<float> c(static_cast<size_t>(RoundUp(m, 16) * c_stride), 0.5f);
  for (const bool add : {true, false}) {
    MultiplyPacked(kind, a.data(), a_stride, packed.data(), RoundUp(k, kPanel) * kPanel, m, n, k,
                   add, c.data(), c_stride);
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        double sum = add ? 0.5 : 0, size = 1;
        for (int64_t l = 0; l < k; ++l) {
          const double x = Widen(a[i * a_stride + l]);
          const double y = Widen(columns ? b[j * b_stride + l] : b[l * b_stride + j]);
          sum += x * y;
          size += std::abs(x * y);
        }
        ASSERT_NEAR(c[i * c_stride + j], sum, 1e-6 * size)
            << m << " " << n << " " << k << " at " << i << ", " << j;
      }
    }
  }
}

template <typename T>
void CheckSizes(ProductKind kind) {
  for (const int64_t m : {1, 5, 16, 17, 32, 47, 64}) {
    for (const int64_t n : {1, 31, 32, 33, 70}) {
      for (const int64_t k : {1, 4, 31, 32, 40, 64, 77}) {
        for (const bool columns : {false, true}) CheckProduct<T>(kind, m, n, k, columns);
      }
    }
  }
}

TEST(BlockProductTest, PortableAgreesWithDouble) {
  CheckSizes<float>(ProductKind::kPortable);
  CheckSizes<uint16_t>(ProductKind::kPortable);
}

TEST(BlockProductTest, TilesAgreeWithDouble) {
  if (!HasTiles()) GTEST_SKIP() << "this processor has no matrix unit";
  CheckSizes<uint16_t>(ProductKind::kTiles);
}

TEST(BlockProductTest, TransposesAnyShape) {
  for (const int64_t rows : {1, 15, 16, 40}) {
    for (const int64_t columns : {1, 16, 33}) {
      const std::vector<uint16_t> x = Random<uint16_t>(rows * (columns + 1), 3);
      std::vector<uint16_t> out(static_cast<size_t>(columns * (rows + 2)), 9);
      Transpose(x.data(), columns + 1, rows, columns, out.data(), rows + 2);
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < columns; ++j) {
          ASSERT_EQ(out[j * (rows + 2) + i], x[i * (columns + 1) + j]);
        }
      }
    }
  }
}

}  // namespace
}  // namespace stillhouse::planned

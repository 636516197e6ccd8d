#include "model/products.h"

#include <cmath>

#include "ATen/ops/mm.h"
#include "ATen/ops/randn.h"
#include "ATen/ops/zeros.h"
#include "gtest/gtest.h"

namespace stillhouse {
namespace {

Matrix MatrixOf(const at::Tensor& tensor) {
  return {tensor.data_ptr(), tensor.size(0), tensor.size(1), tensor.stride(0)};
}

double Distance(const at::Tensor& got, const at::Tensor& wanted) {
  return got.to(at::kDouble).sub(wanted).abs().max().item().toDouble() /
         wanted.abs().max().item().toDouble();
}

class ProductsTest : public testing::TestWithParam<at::ScalarType> {
 protected:
  const at::ScalarType dtype_ = GetParam();
  const double rounding_ = dtype_ == at::kBFloat16 ? 0x1p-8 : 1e-6;
  // Parts of wider matrices: rows are not end to end.
  const at::Tensor a_ = at::randn({37, 70}).to(dtype_).narrow(1, 3, 40);
  const at::Tensor b_ = at::randn({40, 30}).to(dtype_).narrow(1, 0, 19);
  const at::Tensor c_ = at::randn({37, 19}).to(dtype_);
  Products products_{dtype_};
};

TEST_P(ProductsTest, OfEveryOrientationAreTheExactOnesRounded) {
  const at::Tensor a = a_.to(at::kDouble), b = b_.to(at::kDouble);
  at::Tensor out = at::zeros({37, 19}, at::TensorOptions().dtype(dtype_));
  products_.Times(MatrixOf(a_), MatrixOf(b_), /*add=*/false, MatrixOf(out));
  EXPECT_LT(Distance(out, at::mm(a, b)), rounding_);
  const at::Tensor turned = b_.t().contiguous();
  out.copy_(c_);
  products_.TimesTransposed(MatrixOf(a_), MatrixOf(turned), /*add=*/true, MatrixOf(out));
  EXPECT_LT(Distance(out, at::mm(a, b).add(c_.to(at::kDouble))), 2 * rounding_);
}

TEST_P(ProductsTest, WideOnesAreFp32) {
  const at::Tensor a = a_.to(at::kDouble), b = b_.to(at::kDouble), c = c_.to(at::kDouble);
  at::Tensor out = at::zeros({37, 19}), weight = at::zeros({40, 19});
  products_.TimesWide(MatrixOf(a_), MatrixOf(b_), out.mutable_data_ptr<float>());
  EXPECT_LT(Distance(out, at::mm(a, b)), rounding_);
  const at::Tensor wanted = at::mm(a.t(), c);
  products_.TransposedTimesWide(MatrixOf(a_), MatrixOf(c_), /*add=*/false,
                                weight.mutable_data_ptr<float>());
  EXPECT_LT(Distance(weight, wanted), rounding_);
  products_.TransposedTimesWide(MatrixOf(a_), MatrixOf(c_), /*add=*/true,
                                weight.mutable_data_ptr<float>());
  EXPECT_LT(Distance(weight, wanted.mul(2)), rounding_);
}

INSTANTIATE_TEST_SUITE_P(Dtypes, ProductsTest, testing::Values(at::kFloat, at::kBFloat16),
                         [](const auto& test) {
                           return test.param == at::kFloat ? "fp32" : "bf16";
                         });

}  // namespace
}  // namespace stillhouse

#include "model/matmul.h"

#include <gtest/gtest.h>

#include "ATen/ops/linear.h"
#include "ATen/ops/randn.h"
#include "ATen/ops/scaled_dot_product_attention.h"
#include "ATen/ops/zeros.h"
#include "torch/csrc/autograd/function.h"

namespace stillhouse::ops {
namespace {

constexpr double kBf16Step = 0x1.0p-8;  // relative, between neighbours

// Whatever this CPU computes with: a product of bfloat16 matrices is their exact product, in
// double, rounded about once.
void ExpectNear(const at::Tensor& got, const at::Tensor& exact) {
  ASSERT_EQ(got.scalar_type(), at::kBFloat16);
  ASSERT_EQ(got.sizes(), exact.sizes());
  const double scale = exact.abs().max().item().toDouble();
  EXPECT_LT(got.to(at::kDouble).sub(exact).abs().max().item().toDouble(), kBf16Step * scale);
}

at::Tensor RandomBf16(at::IntArrayRef shape) { return at::randn(shape).to(at::kBFloat16); }

TEST(MatmulTest, LinearAndItsGradientsAreTheExactOnesRounded) {
  const at::Tensor x = RandomBf16({37, 70}), w = RandomBf16({19, 70}), dy = RandomBf16({37, 19});
  const at::Tensor xd = x.to(at::kDouble), wd = w.to(at::kDouble), dyd = dy.to(at::kDouble);
  ExpectNear(Linear(x, w), at::linear(xd, wd));
  at::Tensor xg = x.clone().requires_grad_(true), wg = w.clone().requires_grad_(true);
  Linear(xg, wg).backward(dy);
  ExpectNear(xg.grad(), dyd.matmul(wd));
  ExpectNear(wg.grad(), dyd.t().matmul(xd));
}

TEST(MatmulTest, ABiasIsAddedBeforeTheRounding) {
  const at::Tensor x = RandomBf16({37, 70}), w = RandomBf16({19, 70}), bias = RandomBf16({19});
  const at::Tensor exact = at::linear(x.to(at::kDouble), w.to(at::kDouble), bias.to(at::kDouble));
  ExpectNear(Linear(x, w, bias), exact);
  at::Tensor bg = bias.clone().requires_grad_(true);
  const at::Tensor dy = RandomBf16({37, 19});
  const at::Tensor y = Linear(x, w, bg);
  ExpectNear(y.detach(), exact);
  y.backward(dy);
  ExpectNear(bg.grad(), dy.to(at::kDouble).sum(0));
}

TEST(MatmulTest, OperandsThatNeedNoGradientGetNone) {
  const at::Tensor x = RandomBf16({5, 8});
  at::Tensor w = RandomBf16({3, 8}).requires_grad_(true);
  Linear(x, w).sum().backward();
  EXPECT_FALSE(x.grad().defined());
  EXPECT_TRUE(w.grad().defined());
}

TEST(MatmulTest, ProductGoesIntoTheTensorGiven) {
  const at::Tensor a = RandomBf16({33, 70}), b = RandomBf16({70, 21});
  at::Tensor out = at::zeros({33, 21}, a.options());
  const void* data = out.const_data_ptr();
  MatMulInto(out, a, b);
  EXPECT_EQ(out.const_data_ptr(), data);
  ExpectNear(out, a.to(at::kDouble).matmul(b.to(at::kDouble)));
  at::Tensor transposed = at::zeros({70, 70}, a.options());
  MatMulInto(transposed, a.t(), a);
  ExpectNear(transposed, a.t().to(at::kDouble).matmul(a.to(at::kDouble)));
}

TEST(MatmulTest, AttentionIsCausalAndNearTheExactOne) {
  const at::Tensor q = RandomBf16({2, 3, 17, 8}), k = RandomBf16({2, 3, 17, 8}),
                   v = RandomBf16({2, 3, 17, 8});
  for (const bool causal : {true, false}) {
    const at::Tensor exact = at::scaled_dot_product_attention(q.to(at::kDouble), k.to(at::kDouble),
                                                              v.to(at::kDouble), {}, 0.0, causal);
    const at::Tensor got = Attention(q, k, v, causal);
    ASSERT_EQ(got.scalar_type(), at::kBFloat16);
    // Kernels in bfloat16 round the probabilities as well.
    EXPECT_LT(got.to(at::kDouble).sub(exact).abs().max().item().toDouble(),
              4 * kBf16Step * exact.abs().max().item().toDouble());
  }
}

TEST(MatmulTest, EachKindOfCpuHasItsOwnProducts) {
  const bool here = HasBf16Products();
  const at::Tensor x = RandomBf16({37, 70}), w = RandomBf16({19, 70}).requires_grad_(true);
  for (const bool has : {true, false}) {
    PretendBf16Products(has);
    EXPECT_EQ(HasBf16Products(), has);
    const at::Tensor y = Linear(x, w);
    EXPECT_EQ(y.grad_fn()->name().find("WideLinear") == std::string::npos, has)
        << y.grad_fn()->name();
    ExpectNear(y.detach(), at::linear(x.to(at::kDouble), w.detach().to(at::kDouble)));
  }
  PretendBf16Products(here);
}

TEST(MatmulTest, Float32IsLeftAsItIs) {
  const at::Tensor x = at::randn({9, 16}), w = at::randn({4, 16});
  EXPECT_TRUE(Linear(x, w).equal(at::linear(x, w)));
}

// What a model that generates multiplies: odd sizes, more rows than one thread takes, in both
// types.
TEST(MatmulTest, OneRowIsMultipliedAsManyAre) {
  for (const int64_t inputs : {1, 31, 32, 67, 640}) {
    for (const int64_t outputs : {1, 5, 1000}) {
      const at::Tensor x = RandomBf16({1, inputs}), w = RandomBf16({outputs, inputs});
      const at::Tensor bias = RandomBf16({outputs});
      const at::Tensor exact = at::linear(x.to(at::kDouble), w.to(at::kDouble));
      const at::Tensor moved = exact.add(bias.to(at::kDouble));
      ExpectNear(Linear(x, w), exact);
      ExpectNear(Linear(x, w, bias), moved);
      const at::Tensor wide = Linear(x.to(at::kFloat), w.to(at::kFloat), bias.to(at::kFloat));
      EXPECT_LT(wide.to(at::kDouble).sub(moved).abs().max().item().toDouble(),
                1e-5 * static_cast<double>(inputs));
      EXPECT_TRUE(Linear(x, w, bias).equal(Linear(x, w, bias))) << "not the same bits again";
    }
  }
  // A matrix that is a view of another, and a row that is trained, go another way.
  const at::Tensor x = RandomBf16({1, 64}), w = RandomBf16({64, 48});
  ExpectNear(Linear(x, w.t()), at::linear(x.to(at::kDouble), w.t().to(at::kDouble)));
  at::Tensor trained = RandomBf16({3, 64}).requires_grad_(true);
  Linear(x, trained).sum().backward();
  EXPECT_TRUE(trained.grad().defined());
}

}  // namespace
}  // namespace stillhouse::ops

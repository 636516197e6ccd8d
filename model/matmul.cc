#include "model/matmul.h"

#include "ATen/ops/linear.h"
#include "ATen/ops/mm.h"
#include "ATen/ops/scaled_dot_product_attention.h"
#include "torch/csrc/autograd/custom_function.h"

namespace stillhouse::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::tensor_list;

bool Widens(const at::Tensor& x) {
  return x.scalar_type() == at::kBFloat16 && x.is_cpu() && !HasBf16Products();
}

// The product in float32, rounded to bfloat16.
at::Tensor WideProduct(const at::Tensor& a, const at::Tensor& b) {
  return at::mm(a.to(at::kFloat), b.to(at::kFloat)).to(at::kBFloat16);
}

// Keeps bfloat16 for the backward pass, half of what autograd would keep of the widened operands.
struct WideLinear : Function<WideLinear> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& w) {
    context->save_for_backward({x, w});
    return WideProduct(x, w.t());
  }
  static tensor_list backward(AutogradContext* context, tensor_list grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &w = saved[1];
    const at::Tensor dy = grads[0].to(at::kFloat);
    tensor_list out(2);
    if (context->needs_input_grad(0)) out[0] = at::mm(dy, w.to(at::kFloat)).to(at::kBFloat16);
    if (context->needs_input_grad(1)) out[1] = at::mm(dy.t(), x.to(at::kFloat)).to(at::kBFloat16);
    return out;
  }
};

}  // namespace

bool HasBf16Products() {
#if defined(__x86_64__)
  // What oneDNN asks for (avx512_core).
  static const bool has = __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return has;
#else
  return true;
#endif
}

at::Tensor Linear(const at::Tensor& x, const at::Tensor& w) {
  if (!Widens(x)) return at::linear(x, w);
  const bool graph = at::GradMode::is_enabled() && (x.requires_grad() || w.requires_grad());
  return graph ? WideLinear::apply(x, w) : WideProduct(x, w.t());
}

void MatMulInto(at::Tensor& out, const at::Tensor& a, const at::Tensor& b) {
  if (Widens(a)) {
    out.copy_(at::mm(a.to(at::kFloat), b.to(at::kFloat)));
  } else {
    at::mm_out(out, a, b);
  }
}

at::Tensor Attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool causal) {
  if (!Widens(q)) {
    return at::scaled_dot_product_attention(q, k, v, /*attn_mask=*/{}, /*dropout_p=*/0.0, causal);
  }
  return at::scaled_dot_product_attention(q.to(at::kFloat), k.to(at::kFloat), v.to(at::kFloat),
                                          /*attn_mask=*/{}, /*dropout_p=*/0.0, causal)
      .to(at::kBFloat16);
}

}  // namespace stillhouse::ops

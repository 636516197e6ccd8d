#include "model/matmul.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <atomic>
#include <optional>

#include "ATen/cpu/Utils.h"
#include "ATen/ops/addmm.h"
#include "ATen/ops/empty.h"
#include "ATen/ops/linear.h"
#include "ATen/ops/mm.h"
#include "ATen/ops/scaled_dot_product_attention.h"
#include "ATen/ops/sum.h"
#include "model/vector_product.h"
#include "torch/csrc/autograd/custom_function.h"

namespace stillhouse::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::tensor_list;

bool CpuHasBf16Products() {
#if defined(__x86_64__)
  // What oneDNN asks for (avx512_core).
  return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq");
#else
  return true;
#endif
}

std::atomic<bool>& Bf16Products() {
  static std::atomic<bool> has = CpuHasBf16Products();
  return has;
}

bool Widens(const at::Tensor& x) {
  return x.scalar_type() == at::kBFloat16 && x.is_cpu() && !HasBf16Products();
}

// The product, plus `bias` where it is defined, in float32, rounded to bfloat16.
at::Tensor WideProduct(const at::Tensor& a, const at::Tensor& b, const at::Tensor& bias = {}) {
  const at::Tensor wide_a = a.to(at::kFloat), wide_b = b.to(at::kFloat);
  const at::Tensor sum =
      bias.defined() ? at::addmm(bias.to(at::kFloat), wide_a, wide_b) : at::mm(wide_a, wide_b);
  return sum.to(at::kBFloat16);
}

// Keeps bfloat16 for the backward pass, half of what autograd would keep of the widened operands.
struct WideLinear : Function<WideLinear> {
  // An undefined tensor is no input that a Function takes; a missing one is.
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& w,
                            const std::optional<at::Tensor>& bias) {
    context->save_for_backward({x, w});
    context->saved_data["bias"] = bias.has_value();
    return WideProduct(x, w.t(), bias.value_or(at::Tensor()));
  }
  static tensor_list backward(AutogradContext* context, tensor_list grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &w = saved[1];
    const at::Tensor dy = grads[0].to(at::kFloat);
    tensor_list out(3);
    if (context->needs_input_grad(0)) out[0] = at::mm(dy, w.to(at::kFloat)).to(at::kBFloat16);
    if (context->needs_input_grad(1)) out[1] = at::mm(dy.t(), x.to(at::kFloat)).to(at::kBFloat16);
    if (context->saved_data["bias"].toBool() && context->needs_input_grad(2)) {
      out[2] = dy.sum(0).to(at::kBFloat16);
    }
    return out;
  }
};

at::Tensor Attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                  const std::optional<at::Tensor>& mask, bool causal) {
  if (!Widens(q)) {
    return at::scaled_dot_product_attention(q, k, v, mask, /*dropout_p=*/0.0, causal);
  }
  return at::scaled_dot_product_attention(q.to(at::kFloat), k.to(at::kFloat), v.to(at::kFloat),
                                          mask,
                                          /*dropout_p=*/0.0, causal)
      .to(at::kBFloat16);
}

// One row of a model that generates, on this CPU and without gradients.
bool IsVector(const at::Tensor& x, const at::Tensor& w, bool trains) {
  return x.dim() == 2 && x.size(0) == 1 && x.is_cpu() && !(at::GradMode::is_enabled() && trains) &&
         (x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kFloat) &&
         w.scalar_type() == x.scalar_type() && w.is_contiguous() && x.is_contiguous();
}

template <typename T>
at::Tensor VectorLinear(const at::Tensor& x, const at::Tensor& w, const at::Tensor& bias) {
  const auto bits = [](const at::Tensor& t) {
    return t.defined() ? static_cast<const T*>(t.const_data_ptr()) : nullptr;
  };
  at::Tensor y = at::empty({1, w.size(0)}, x.options().requires_grad(false));
  kernels::VectorProduct(bits(x), bits(w), bits(bias), w.size(0), w.size(1),
                         static_cast<T*>(y.mutable_data_ptr()));
  return y;
}

}  // namespace

bool HasBf16Products() { return Bf16Products(); }
void PretendBf16Products(bool has) { Bf16Products() = has; }

bool HasMatrixUnit() {
#if defined(__x86_64__)
  static const bool has = [] {
    constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;  // of leaf 7's edx
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
    return (d & kBf16) != 0 && (d & kTile) != 0 && at::cpu::init_amx();
  }();
  return has;
#else
  return false;
#endif
}

at::Tensor Linear(const at::Tensor& x, const at::Tensor& w, const at::Tensor& bias) {
  const auto given = bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt;
  const bool trains =
      x.requires_grad() || w.requires_grad() || (bias.defined() && bias.requires_grad());
  if (IsVector(x, w, trains)) {
    return x.scalar_type() == at::kFloat ? VectorLinear<float>(x, w, bias)
                                         : VectorLinear<uint16_t>(x, w, bias);
  }
  if (!Widens(x)) return at::linear(x, w, given);
  return at::GradMode::is_enabled() && trains ? WideLinear::apply(x, w, given)
                                              : WideProduct(x, w.t(), bias);
}

void MatMulInto(at::Tensor& out, const at::Tensor& a, const at::Tensor& b) {
  if (Widens(a)) {
    out.copy_(at::mm(a.to(at::kFloat), b.to(at::kFloat)));
  } else {
    at::mm_out(out, a, b);
  }
}

void AddMatMulInto(at::Tensor& out, const at::Tensor& a, const at::Tensor& b) {
  if (Widens(a)) {
    out.copy_(at::addmm(out.to(at::kFloat), a.to(at::kFloat), b.to(at::kFloat)));
  } else {
    at::addmm_out(out, out, a, b);
  }
}

at::Tensor Attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool causal) {
  return Attend(q, k, v, /*mask=*/{}, causal);
}

at::Tensor MaskedAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const at::Tensor& mask) {
  return Attend(q, k, v, mask, /*causal=*/false);
}

}  // namespace stillhouse::ops

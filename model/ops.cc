#include "model/ops.h"

#include <type_traits>

#include "ATen/ops/empty.h"
#include "ATen/ops/empty_like.h"
#include "ATen/ops/sum.h"
#include "model/kernels.h"
#include "torch/csrc/autograd/custom_function.h"

namespace stillhouse::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::tensor_list;

// Calls f with a null pointer of the type that the kernels use for tensors of `dtype`.
template <typename F>
void ByType(at::ScalarType dtype, F f) {
  if (dtype == at::kFloat) {
    f(static_cast<float*>(nullptr));
  } else {
    TORCH_CHECK(dtype == at::kBFloat16, "the decoder computes in float32 or bfloat16, not ", dtype);
    f(static_cast<uint16_t*>(nullptr));
  }
}

template <typename T>
const T* Data(const at::Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <typename T>
T* MutableData(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

bool NeedsGraph(const at::Tensor& a, const at::Tensor& b) {
  return at::GradMode::is_enabled() && (a.requires_grad() || b.requires_grad());
}

at::Tensor NormForward(const at::Tensor& x, const at::Tensor& weight, double eps,
                       at::Tensor* rstd) {
  TORCH_CHECK(x.dim() == 2 && x.is_contiguous() && weight.is_contiguous() &&
                  weight.numel() == x.size(1) && weight.scalar_type() == x.scalar_type(),
              "RmsNorm: x must be [T, H] and weight [H], of one dtype");
  at::Tensor y = at::empty_like(x);
  *rstd = at::empty({x.size(0)}, x.options().dtype(at::kFloat));
  ByType(x.scalar_type(), [&]<typename T>(T*) {
    kernels::RmsNorm(Data<T>(x), Data<T>(weight), static_cast<float>(eps), x.size(0), x.size(1),
                     MutableData<T>(y), MutableData<float>(*rstd));
  });
  return y;
}

struct NormFunction : Function<NormFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            double eps) {
    at::Tensor rstd;
    at::Tensor y = NormForward(x, weight, eps, &rstd);
    context->save_for_backward({x, weight, rstd});
    return y;
  }
  static tensor_list backward(AutogradContext* context, tensor_list grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1], &rstd = saved[2];
    const at::Tensor dy = grads[0].contiguous();
    const int64_t rows = x.size(0), width = x.size(1);
    at::Tensor dx = at::empty_like(x);
    const int64_t parts = (rows + kernels::kNormGradRows - 1) / kernels::kNormGradRows;
    const at::Tensor dw = at::empty({parts, width}, x.options().dtype(at::kFloat));
    ByType(x.scalar_type(), [&]<typename T>(T*) {
      kernels::RmsNormBackward(Data<T>(x), Data<T>(weight), Data<float>(rstd), Data<T>(dy), rows,
                               width, MutableData<T>(dx), MutableData<float>(dw));
    });
    return {dx, dw.sum(0).to(weight.scalar_type()), at::Tensor()};
  }
};

at::Tensor RotateBy(const at::Tensor& x, const RotaryTable& table, const at::Tensor& position,
                    bool inverse) {
  TORCH_CHECK(x.dim() == 3 && x.is_contiguous() && position.numel() == x.size(0) &&
                  table.cos.size(1) * 2 == x.size(2),
              "Rotate: x must be [T, heads, size]");
  at::Tensor y = at::empty_like(x);
  ByType(x.scalar_type(), [&]<typename T>(T*) {
    kernels::Rotate(Data<T>(x), Data<float>(table.cos), Data<float>(table.sin),
                    Data<int32_t>(position), inverse, x.size(0), x.size(1), x.size(2),
                    MutableData<T>(y));
  });
  return y;
}

struct RotateFunction : Function<RotateFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& cos,
                            const at::Tensor& sin, const at::Tensor& position) {
    context->save_for_backward({cos, sin, position});
    return RotateBy(x, {cos, sin}, position, /*inverse=*/false);
  }
  static tensor_list backward(AutogradContext* context, tensor_list grads) {
    const auto saved = context->get_saved_variables();
    return {RotateBy(grads[0].contiguous(), {saved[0], saved[1]}, saved[2], /*inverse=*/true),
            at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

at::Tensor SwiGluForward(const at::Tensor& gate, const at::Tensor& up) {
  TORCH_CHECK(gate.is_contiguous() && up.is_contiguous() && gate.sizes() == up.sizes(),
              "SwiGlu: gate and up must have one shape");
  at::Tensor y = at::empty_like(gate);
  ByType(gate.scalar_type(), [&]<typename T>(T*) {
    kernels::SwiGlu(Data<T>(gate), Data<T>(up), gate.numel(), MutableData<T>(y));
  });
  return y;
}

struct SwiGluFunction : Function<SwiGluFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& gate,
                            const at::Tensor& up) {
    context->save_for_backward({gate, up});
    return SwiGluForward(gate, up);
  }
  static tensor_list backward(AutogradContext* context, tensor_list grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &gate = saved[0], &up = saved[1];
    const at::Tensor dy = grads[0].contiguous();
    at::Tensor dgate = at::empty_like(gate), dup = at::empty_like(up);
    ByType(gate.scalar_type(), [&]<typename T>(T*) {
      kernels::SwiGluBackward(Data<T>(gate), Data<T>(up), Data<T>(dy), gate.numel(),
                              MutableData<T>(dgate), MutableData<T>(dup));
    });
    return {dgate, dup};
  }
};

}  // namespace

at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  if (NeedsGraph(x, weight)) return NormFunction::apply(x, weight, eps);
  at::Tensor rstd;
  return NormForward(x, weight, eps, &rstd);
}

at::Tensor Rotate(const at::Tensor& x, const RotaryTable& table, const at::Tensor& position) {
  if (NeedsGraph(x, x)) return RotateFunction::apply(x, table.cos, table.sin, position);
  return RotateBy(x, table, position, /*inverse=*/false);
}

at::Tensor SwiGlu(const at::Tensor& gate, const at::Tensor& up) {
  if (NeedsGraph(gate, up)) return SwiGluFunction::apply(gate, up);
  return SwiGluForward(gate, up);
}

}  // namespace stillhouse::ops

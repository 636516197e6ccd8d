// StepObserver: where losses on inner states look at a planned step and add their gradients.
//
// Called by the step's thread, in the order forward layer 0, 1, …, backward …, 1, 0. What is handed
// over lies in the step's buffers: valid during the call. T tokens, H hidden size, Q heads, D head
// size.
#pragma once

#include <cstdint>

#include "common/tensor_view.h"

namespace stillhouse {

class StepObserver {
 public:
  virtual ~StepObserver() = default;

  // Forward: the residual stream after a layer, [T, H] fp32.
  virtual void OnLayerOutput(int64_t layer, const TensorView& output) {}
  // Forward: what each head of a layer's attention gives, [T, Q·D] in the compute dtype.
  virtual void OnAttentionOutput(int64_t layer, const TensorView& output) {}
  // Backward: adds the gradient of a loss on that output to `gradient`, [T, H] fp32. Returns
  // whether it did.
  virtual bool AddLayerGradient(int64_t layer, const TensorView& gradient) { return false; }
  // Backward: the same for attention, [T, Q·D] in the compute dtype.
  virtual void AddAttentionGradient(int64_t layer, const TensorView& gradient) {}
};

}  // namespace stillhouse

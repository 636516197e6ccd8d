// PlannedStep: forward and backward of one micro-batch, written by hand layer by layer, in memory
// that was made before.
//
// The arithmetic is that of model/decoder.h and its gradient, with two choices of its own: the
// residual stream and its gradient are fp32 (step_kernels.h), and attention runs in blocks
// (attention.h). T is float, or uint16_t for bfloat16 bits.
//
// Owner: keeps its buffers, which grow with the largest micro-batch and never shrink. Threads: one
// call at a time; inside, ParallelFor's and LibTorch's. Determinism: the same bits for the same
// batch, weights, CPU and number of threads.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/tensor_view.h"
#include "formats/model_config.h"
#include "model/products.h"
#include "model/rotary.h"
#include "sharding/flat_layout.h"
#include "sharding/gradient_sink.h"
#include "student/losses/head_loss.h"
#include "student/packing.h"
#include "student/planned/attention.h"
#include "student/planned/step_buffers.h"
#include "student/planned/step_observer.h"
#include "student/planned/step_weights.h"
#include "student/student_model.h"

namespace stillhouse::planned {

template <typename T>
class PlannedStep {
 public:
  // `layout` is StudentLayout(config); `weights` must outlive the step.
  PlannedStep(const ModelConfig& config, const FlatLayout& layout, const TensorView& weights,
              const StudentLossOptions& loss);

  // Makes room for micro-batches of up to `tokens` tokens in documents of any length. Allocates
  // only where there is not enough.
  void Reserve(int64_t tokens);

  // StudentModel::AddGradients, into `sink`. `observer` may be null.
  absl::Status Run(const MicroBatch& batch, absl::Span<const double> coefficients,
                   GradientSink& sink, StepObserver* observer,
                   std::vector<std::vector<float>>* values);

 private:
  int64_t mixed_width() const { return (2 * config_.kv_heads + config_.heads) * config_.head_dim; }
  void PlanPositions(const MicroBatch& batch);

  // forward: layer_forward.cc
  absl::Status Forward(const MicroBatch& batch, GradientSink& sink, StepObserver* observer);
  absl::Status ForwardLayer(size_t layer, GradientSink& sink, StepObserver* observer);
  absl::Status Await(const ProjectionGroup<T>& group, GradientSink& sink);
  // out [T, group.outputs] = x · Wᵀ, with biases.
  absl::Status Project(const ProjectionGroup<T>& group, const T* x, int64_t inputs, T* out,
                       GradientSink& sink);
  void RotateMixed(T* mixed, bool inverse);
  absl::Status NormMixed(size_t layer, GradientSink& sink);

  absl::Status RunHead(const MicroBatch& batch, absl::Span<const double> coefficients,
                       GradientSink& sink, std::vector<std::vector<float>>* values);

  // backward: layer_backward.cc
  absl::Status Backward(const MicroBatch& batch, GradientSink& sink, StepObserver* observer);
  absl::Status BackwardLayer(size_t layer, GradientSink& sink, StepObserver* observer);
  absl::Status BackwardFeedForward(size_t layer, GradientSink& sink);
  absl::Status BackwardAttention(size_t layer, GradientSink& sink, StepObserver* observer);
  absl::Status NormMixedBackward(size_t layer, GradientSink& sink);
  // dx [T, inputs] = dy [T, group.outputs] · W.
  void ProjectBackward(const ProjectionGroup<T>& group, const T* dy, int64_t inputs, T* dx);
  // The gradients of the group's weights and biases.
  absl::Status AddProjectionGradients(const ProjectionGroup<T>& group, const T* dy, const T* x,
                                      int64_t inputs, GradientSink& sink);
  // Through the norm of `input`, from `branch` to the stream's gradient, added where `add`.
  absl::Status BackwardNorm(const Weight<T>& weight, const float* input, const float* rstd,
                            const T* dy, bool add, GradientSink& sink);
  absl::Status AddNormParts(const Weight<T>& weight, int64_t width, GradientSink& sink);
  absl::Status AddEmbeddingGradient(const MicroBatch& batch, GradientSink& sink);

  const ModelConfig config_;
  const bool tied_;
  const StepWeights<T> weights_;
  HeadLoss head_loss_;
  Products products_;
  Attention<T> attention_;
  StepBuffers<T> buffers_;
  // Angles of positions from 0, or, for RoPE whose angles depend on the length, of this batch.
  RotaryAngles angles_;
  int64_t angle_positions_ = 0;
  const float *cos_ = nullptr, *sin_ = nullptr;
  // Of the micro-batch at hand.
  int64_t tokens_ = 0;
  absl::Span<const int64_t> lengths_;
  at::Tensor head_, picked_, picked_gradient_, head_gradient_, teacher_hidden_;
};

}  // namespace stillhouse::planned

// Gradients that enter a planned step inside: a loss on inner states, against differences.

#include <cmath>
#include <memory>

#include "common/status.h"
#include "gtest/gtest.h"
#include "tests/student/flat_sink.h"
#include "tests/student/planned/random_batch.h"
#include "tests/student/small_student.h"

namespace stillhouse {
namespace {

// ½ Σ x² over the output of layer 0, and the same over what its attention gives.
class InnerLoss final : public StepObserver {
 public:
  void OnLayerOutput(int64_t layer, const TensorView& output) override {
    order.push_back(layer);
    if (layer == 0) Take(output, &stream_);
  }
  void OnAttentionOutput(int64_t layer, const TensorView& output) override {
    if (layer == 0) Take(output, &attention_);
  }
  bool AddLayerGradient(int64_t layer, const TensorView& gradient) override {
    order.push_back(layer);
    if (layer == 0) Add(stream_, gradient);
    return layer == 0;
  }
  void AddAttentionGradient(int64_t layer, const TensorView& gradient) override {
    if (layer == 0) Add(attention_, gradient);
  }

  double loss = 0;
  std::vector<int64_t> order;

 private:
  void Take(const TensorView& view, std::vector<float>* copy) {
    const auto* data = static_cast<const float*>(view.data);
    copy->assign(data, data + view.count);
    for (const float value : *copy) loss += 0.5 * value * value;
  }
  static void Add(const std::vector<float>& from, const TensorView& to) {
    ASSERT_EQ(from.size(), to.count);
    for (size_t i = 0; i < from.size(); ++i) static_cast<float*>(to.data)[i] += from[i];
  }

  std::vector<float> stream_, attention_;
};

TEST(StepObserverTest, AddsTheGradientOfALossOnInnerStates) {
  const std::vector<LossTerm> terms = {{LossKind::kCrossEntropy, 1, 1}};
  SmallStudent student(terms, SmallConfig(true), DType::kF32);
  const MicroBatch batch = RandomBatch({9, 14}, 53, 1, 1);
  const std::vector<double> coefficients = {0.5};
  const FlatLayout& layout = student.state->layout;
  std::vector<float> gradients(layout.size());
  const auto solve = [&] {
    InnerLoss inner;
    const auto planned = student.Planned(/*tokens_max=*/32, &inner);
    std::vector<std::vector<float>> values;
    FlatSink sink(layout, absl::MakeSpan(gradients));
    SH_CHECK_OK(planned->AddGradients(batch, coefficients, sink, &values));
    EXPECT_EQ(inner.order, (std::vector<int64_t>{0, 1, 1, 0}));
    double loss = inner.loss;
    for (const float value : values[0]) loss += coefficients[0] * value;
    return loss;
  };
  solve();
  const std::vector<float> gradient = gradients;
  // Along each parameter's own gradient, the loss changes by its squared length.
  for (const FlatParameter& parameter : layout.parameters()) {
    float* weights = student.state->masters.data() + parameter.offset;
    const std::vector<float> before(weights, weights + parameter.count);
    double squares = 0;
    for (size_t i = 0; i < parameter.count; ++i) {
      const double g = gradient[parameter.offset + i];
      squares += g * g;
    }
    const double step = 4e-3 / std::sqrt(squares);
    double losses[2];
    for (const int side : {0, 1}) {
      for (size_t i = 0; i < parameter.count; ++i) {
        const double g = gradient[parameter.offset + i];
        weights[i] = static_cast<float>(before[i] + (side == 0 ? step : -step) * g);
      }
      losses[side] = solve();
    }
    std::copy(before.begin(), before.end(), weights);
    EXPECT_NEAR((losses[0] - losses[1]) / (2 * step), squares, squares * 0.02) << parameter.name;
  }
}

}  // namespace
}  // namespace stillhouse

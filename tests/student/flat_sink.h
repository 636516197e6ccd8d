// FlatSink: gradients of one micro-batch after the other in one flat buffer, in the layout's order.
#pragma once

#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "common/status.h"
#include "sharding/flat_layout.h"
#include "sharding/gradient_sink.h"

namespace stillhouse {

class FlatSink final : public GradientSink {
 public:
  // `layout` and `gradients` must outlive it. The first gradient of each parameter overwrites.
  FlatSink(const FlatLayout& layout, absl::Span<float> gradients)
      : layout_(layout), gradients_(gradients), begun_(layout.parameters().size()) {
    SH_CHECK(gradients.size() == layout.size());
  }

  absl::StatusOr<GradientPlace> Begin(size_t parameter) override {
    float* const data = gradients_.data() + layout_.parameters()[parameter].offset;
    return GradientPlace{data, std::exchange(begun_[parameter], 1) != 0};
  }
  absl::Status Ready(size_t) override { return absl::OkStatus(); }
  absl::Status AwaitWeights(size_t) override { return absl::OkStatus(); }

 private:
  const FlatLayout& layout_;
  const absl::Span<float> gradients_;
  std::vector<char> begun_;  // by parameter
};

}  // namespace stillhouse

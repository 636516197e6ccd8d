// GradientSink: where the gradients of one micro-batch go, and how a backward pass says that one of
// them is complete.
//
// A parameter is known by its index in the FlatLayout. The backward pass calls, for each parameter
// that it has a gradient of,
//
//   Begin(p) ── writes or adds to the place ── [Begin(p) again, and adds] ── Ready(p)
//
// in any order of parameters, the same on every rank for speed (not for correctness). The place
// stays where it is until Ready; after it, it is not touched. A tied matrix is begun by the head
// and ready after the embedding. A parameter that is never begun counts as zero.
//
// Threads: one at a time, that of the step.
#pragma once

#include <cstddef>

#include "absl/status/statusor.h"

namespace stillhouse {

struct GradientPlace {
  // fp32, as many elements as the parameter has; null for a frozen parameter, whose gradient nobody
  // wants: Ready is not called for it.
  float* data = nullptr;
  // Whether the gradient is added to what is there. If not, every element is to be written.
  bool add = false;
};

class GradientSink {
 public:
  virtual ~GradientSink() = default;
  // May wait for the ranks; an error ends the step.
  virtual absl::StatusOr<GradientPlace> Begin(size_t parameter) = 0;
  virtual absl::Status Ready(size_t parameter) = 0;
  // Before the first read of a parameter's weights in a step: the all-gather of the last update may
  // still be under way. Called in the order of use, it waits for no more than is read.
  virtual absl::Status AwaitWeights(size_t parameter) = 0;
};

}  // namespace stillhouse

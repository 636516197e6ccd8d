// BindStudent: a student's flat weights as the tensors that the decoder reads.
#pragma once

#include "absl/status/statusor.h"
#include "common/tensor_view.h"
#include "formats/model_config.h"
#include "model/decoder.h"

namespace stillhouse {

struct StudentLossOptions;

// Views of `weights`, which is laid out by StudentLayout(config) and must outlive them. `trains`:
// they require gradients. InvalidArgument for a config that is not valid, or a vocabulary of the
// loss that the head has not.
absl::StatusOr<DecoderWeights> BindStudent(const ModelConfig& config, const TensorView& weights,
                                           const StudentLossOptions& loss, bool trains);

}  // namespace stillhouse

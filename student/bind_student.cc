#include "student/bind_student.h"

#include <string>
#include <utility>
#include <vector>

#include "ATen/ops/from_blob.h"
#include "common/status.h"
#include "model/torch_status.h"
#include "student/student_model.h"

namespace stillhouse {
namespace {

constexpr char kEmbedding[] = "model.embed_tokens.weight";

}  // namespace

FlatLayout StudentLayout(const ModelConfig& config) {
  std::vector<std::pair<std::string, size_t>> order;
  const std::vector<ModelConfig::Parameter> parameters = config.Parameters();
  std::pair<std::string, size_t> embedding;
  for (auto it = parameters.rbegin(); it != parameters.rend(); ++it) {
    size_t count = 1;
    for (const int64_t size : it->shape) count *= static_cast<size_t>(size);
    if (it->name == kEmbedding) {
      embedding = {it->name, count};
    } else {
      order.emplace_back(it->name, count);
    }
  }
  order.push_back(std::move(embedding));
  return FlatLayout(order);
}

absl::StatusOr<DecoderWeights> BindStudent(const ModelConfig& config, const TensorView& weights,
                                           const StudentLossOptions& loss, bool trains) {
  SH_RETURN_IF_ERROR(config.Validate());
  const FlatLayout layout = StudentLayout(config);
  SH_CHECK(weights.count == layout.size());
  SH_CHECK(weights.dtype == DType::kF32 || weights.dtype == DType::kBF16);
  if (loss.vocabulary <= 0 || loss.vocabulary > config.vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat("the tokenizer has ", loss.vocabulary,
                                                   " ids, the student's head only ",
                                                   config.vocab_size, " rows"));
  }
  const at::ScalarType dtype = weights.dtype == DType::kF32 ? at::kFloat : at::kBFloat16;
  return BindDecoder(
      config, [&](const ModelConfig::Parameter& parameter) -> absl::StatusOr<at::Tensor> {
        const FlatParameter* place = layout.Find(parameter.name);
        char* data = static_cast<char*>(weights.data) + place->offset * DTypeSize(weights.dtype);
        at::Tensor tensor;
        SH_RETURN_IF_ERROR(CallTorch([&] {
          tensor = at::from_blob(data, parameter.shape, at::TensorOptions().dtype(dtype));
          tensor.requires_grad_(trains);
        }));
        return tensor;
      });
}

}  // namespace stillhouse

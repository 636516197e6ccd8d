#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/model_files.h"
#include "model/ctl/commands.h"

namespace stillhouse {
namespace {

struct Dtype {
  absl::string_view flag, stored, config;
};
constexpr Dtype kDtypes[] = {
    {"fp32", "F32", "float32"}, {"bf16", "BF16", "bfloat16"}, {"fp16", "F16", "float16"}};

}  // namespace

absl::Status Convert(const ConvertFlags& flags) {
  if (PathExists(flags.out)) return absl::AlreadyExistsError(absl::StrCat(flags.out, ": is there"));
  const Dtype* dtype = nullptr;
  for (const Dtype& known : kDtypes) {
    if (known.flag == flags.dtype) dtype = &known;
  }
  if (dtype == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("no dtype ", flags.dtype));
  }
  SH_ASSIGN_OR_RETURN(ModelFiles files, OpenModelFiles(flags.model));
  if (files.tokenizer == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(flags.model, ": has no tokenizer"));
  }
  files.config.dtype = std::string(dtype->config);
  std::vector<TensorToWrite> tensors;
  for (const ModelConfig::Parameter& parameter : files.config.Parameters()) {
    tensors.push_back({parameter.name, parameter.shape, std::string(dtype->stored),
                       [weights = files.weights, name = parameter.name](absl::Span<float> out) {
                         return weights->ReadF32(name, out);
                       }});
  }
  return WriteHuggingFaceFolder(flags.out, files.config, *files.tokenizer, tensors);
}

}  // namespace stillhouse

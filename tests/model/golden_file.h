// Tensors of the golden files that tools/golden/*.py write.
#pragma once

#include <cstring>
#include <string>

#include "ATen/core/Tensor.h"
#include "ATen/ops/empty.h"
#include "common/status.h"
#include "formats/safetensors.h"

namespace stillhouse::testing {

inline at::Tensor ReadInts(const SafetensorsFile& file, const std::string& name) {
  const SafetensorsTensor* tensor = file.Find(name);
  SH_CHECK(tensor != nullptr && tensor->dtype == "I64", name);
  at::Tensor ints = at::empty(tensor->shape, at::kLong);
  std::memcpy(ints.mutable_data_ptr(), file.Bytes(*tensor).data(), file.Bytes(*tensor).size());
  return ints;
}

inline at::Tensor ReadFloats(const SafetensorsFile& file, const std::string& name) {
  const SafetensorsTensor* tensor = file.Find(name);
  SH_CHECK(tensor != nullptr, name);
  at::Tensor floats = at::empty(tensor->shape, at::kFloat);
  SH_CHECK_OK(file.ReadF32(*tensor, absl::MakeSpan(floats.mutable_data_ptr<float>(),
                                                   static_cast<size_t>(floats.numel()))));
  return floats;
}

}  // namespace stillhouse::testing

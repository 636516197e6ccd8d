// TeacherBackend: something that can run the teacher over one planned batch. The local backend
// holds the whole model in this process.
//
// Threads: one caller at a time. Determinism: the same batch gives the same bits within one
// producer class.
#pragma once

#include <memory>
#include <string>

#include "ATen/core/Tensor.h"
#include "absl/status/statusor.h"
#include "model/decoder.h"

namespace stillhouse {

class TeacherBackend {
 public:
  virtual ~TeacherBackend() = default;
  virtual const ModelConfig& config() const = 0;
  virtual at::ScalarType dtype() const = 0;  // at::kBFloat16 or at::kFloat: of states and logits
  // Everything that decides the bits of a forward pass, as one line.
  virtual const std::string& producer_class() const = 0;

  // States after the final norm, [T, H].
  virtual absl::StatusOr<at::Tensor> Hidden(const DecoderBatch& batch, LayerHook hook) = 0;
  // logits [R, V] = hidden [R, H] · headᵀ, into memory that the caller reuses, all of dtype().
  virtual absl::Status Logits(const at::Tensor& hidden, at::Tensor& logits) = 0;
  virtual const at::Tensor& head() const = 0;        // [V, H]
  virtual const at::Tensor& final_norm() const = 0;  // [H]
};

std::unique_ptr<TeacherBackend> MakeLocalBackend(DecoderWeights weights);

// Changes with every change of ours that may change captured bytes.
inline constexpr int kCaptureVersion = 2;
// "cpu=AMD EPYC 9R14;isa=avx512_bf16;threads=2;torch=2.11.0;dtype=bf16;capture=1"
std::string LocalProducerClass(at::ScalarType dtype);

}  // namespace stillhouse

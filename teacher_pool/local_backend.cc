#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "c10/core/GradMode.h"
#include "common/file.h"
#include "model/matmul.h"
#include "model/parallel.h"
#include "model/torch_status.h"
#include "teacher_pool/teacher_backend.h"
#include "torch/version.h"

namespace stillhouse {
namespace {

class LocalBackend final : public TeacherBackend {
 public:
  explicit LocalBackend(DecoderWeights weights)
      : weights_(std::move(weights)),
        dtype_(weights_.embedding.scalar_type()),
        producer_class_(LocalProducerClass(dtype_)) {}

  const ModelConfig& config() const override { return weights_.config; }
  at::ScalarType dtype() const override { return dtype_; }
  const std::string& producer_class() const override { return producer_class_; }

  absl::StatusOr<at::Tensor> Hidden(const DecoderBatch& batch, LayerHook hook) override {
    const c10::NoGradGuard no_grad;
    return ForwardHidden(weights_, batch, hook);
  }
  absl::Status Logits(const at::Tensor& hidden, at::Tensor& logits) override {
    const c10::NoGradGuard no_grad;
    return CallTorch([&] { ops::MatMulInto(logits, hidden, weights_.head.t()); });
  }
  const at::Tensor& head() const override { return weights_.head; }
  const at::Tensor& final_norm() const override { return weights_.final_norm; }

 private:
  const DecoderWeights weights_;
  const at::ScalarType dtype_;
  const std::string producer_class_;
};

// The value of the first line "`field` : value" of /proc/cpuinfo, or "unknown".
std::string CpuField(absl::string_view cpuinfo, absl::string_view field) {
  for (absl::string_view line : absl::StrSplit(cpuinfo, '\n')) {
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(line, absl::MaxSplits(':', 1));
    if (absl::StripAsciiWhitespace(parts.first) == field) {
      return std::string(absl::StripAsciiWhitespace(parts.second));
    }
  }
  return "unknown";
}

// The instruction sets by which the matrix kernels choose their code, best first.
std::string IsaLevel(absl::string_view flags) {
  const std::vector<absl::string_view> have = absl::StrSplit(flags, ' ');
  std::string level;
  for (const absl::string_view flag : {"amx_bf16", "avx512_bf16", "avx512f", "avx2"}) {
    if (std::find(have.begin(), have.end(), flag) != have.end()) {
      absl::StrAppend(&level, level.empty() ? "" : "+", flag);
    }
  }
  return level.empty() ? "base" : level;
}

}  // namespace

std::unique_ptr<TeacherBackend> MakeLocalBackend(DecoderWeights weights) {
  return std::make_unique<LocalBackend>(std::move(weights));
}

std::string LocalProducerClass(at::ScalarType dtype) {
  const std::string cpuinfo = ReadFile("/proc/cpuinfo").value_or("");
  return absl::StrCat("cpu=", CpuField(cpuinfo, "model name"),
                      ";isa=", IsaLevel(CpuField(cpuinfo, "flags")), ";threads=", ComputeThreads(),
                      ";torch=", TORCH_VERSION, ";dtype=", dtype == at::kFloat ? "fp32" : "bf16",
                      ";capture=", kCaptureVersion);
}

}  // namespace stillhouse

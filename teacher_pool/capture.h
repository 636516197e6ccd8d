// Capture: from one planned batch to the rows of every section asked for, in one forward pass.
//
// The head runs over chunks of rows into one buffer that is used again, so that logits of a whole
// batch never exist; each chunk is summarised, drawn from and forgotten. Padding has no rows and
// costs no head. Not thread-safe; ParallelFor inside.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "dataset/plan.h"
#include "storage/codec.h"
#include "teacher_pool/influence.h"
#include "teacher_pool/row_capture.h"
#include "teacher_pool/teacher_backend.h"

namespace stillhouse {

// The sections that a capture yields.
using CaptureRequest = std::vector<SectionSpec>;
// Of the sections named: InvalidArgument for one named twice, for a hidden size or a layer that is
// not the model's.
absl::StatusOr<CaptureRequest> MakeCaptureRequest(absl::Span<const SectionSpec> specs,
                                                  const ModelConfig& config);

struct CapturedDocument {
  uint32_t document = 0;              // its number in the plan
  std::vector<SectionRows> sections;  // of each spec of the request, in order
};

class Capturer {
 public:
  // Logits held at a time: rows of a chunk are as many as fit, within [kChunkRowsMin,
  // kChunkRowsMax]. The size is part of what decides the bits: changing it needs a new
  // kCaptureVersion.
  static constexpr int64_t kLogitBytesMax = 64 << 20;
  static constexpr int64_t kChunkRowsMin = 16;
  static constexpr int64_t kChunkRowsMax = 1024;

  // `backend` must outlive the capturer. Ids at or above `vocabulary`, the tokenizer's size, are
  // padding: they get no mass. InvalidArgument if the model has fewer ids than that.
  static absl::StatusOr<Capturer> Create(TeacherBackend& backend, uint32_t vocabulary);

  // `influence`, if not null, is fed with the rows of the batch. `stepped` is called after each
  // layer and each chunk of rows, on the caller's thread. InvalidArgument, naming the document and
  // row, for logits or states that are not finite or too large to store. REQUIRES: the request was
  // made by MakeCaptureRequest.
  absl::StatusOr<std::vector<CapturedDocument>> Run(const Plan& plan, const PlanBatch& batch,
                                                    const CaptureRequest& request,
                                                    BlockInfluence* influence,
                                                    absl::FunctionRef<void()> stepped);

 private:
  Capturer(TeacherBackend& backend, uint32_t vocabulary, int64_t chunk_rows)
      : backend_(&backend), vocabulary_(vocabulary), chunk_rows_(chunk_rows) {}

  // One row of the batch, and where it lies in the padded hidden states.
  struct Row {
    uint32_t document = 0;  // within the batch
    uint32_t position = 0;
    int64_t place = 0;
    int32_t next = 0;  // the token that follows
  };
  static std::vector<Row> RowsOf(const Plan& plan, const PlanBatch& batch);
  absl::Status CaptureLogits(const Plan& plan, const PlanBatch& batch,
                             const CaptureRequest& request, absl::Span<const Row> rows,
                             const at::Tensor& hidden, std::vector<CapturedDocument>* documents);
  // `hidden` [rows, H].
  absl::Status CaptureAllLogits(const Plan& plan, const PlanBatch& batch,
                                const CaptureRequest& request, absl::Span<const Row> rows,
                                const at::Tensor& hidden, absl::FunctionRef<void()> stepped,
                                std::vector<CapturedDocument>* documents);

  // The sections of `kind`, and of this layer, from the padded [T, H] states.
  static absl::Status CaptureHidden(const PlanBatch& batch, const CaptureRequest& request,
                                    SectionKind kind, int64_t layer, absl::Span<const Row> rows,
                                    const at::Tensor& padded,
                                    std::vector<CapturedDocument>* documents);

  TeacherBackend* backend_;
  uint32_t vocabulary_;
  int64_t chunk_rows_;
  at::Tensor logits_;                // [chunk_rows, V], made on first use
  std::vector<RowCapture> workers_;  // one per thread
};

}  // namespace stillhouse

#include "teacher_pool/capture.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "ATen/ops/empty.h"
#include "ATen/ops/from_blob.h"
#include "ATen/ops/index_select.h"
#include "absl/strings/str_cat.h"
#include "common/mutex.h"
#include "common/status.h"
#include "common/tensor_view.h"
#include "model/parallel.h"
#include "model/torch_status.h"
#include "storage/codec.h"

namespace stillhouse {
namespace {

// The first row, in order, at which something was wrong: the same one whatever the threads.
class FirstBad {
 public:
  void Report(int64_t row) {
    MutexLock lock(mutex_);
    if (row_ < 0 || row < row_) row_ = row;
  }
  int64_t row() {
    MutexLock lock(mutex_);
    return row_;
  }

 private:
  Mutex mutex_;
  int64_t row_ ABSL_GUARDED_BY(mutex_) = -1;
};

absl::Status BadRow(uint32_t document, uint32_t position, absl::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat("document ", document, " row ", position, ": ", what));
}

DecoderBatch PaddedBatch(const Plan& plan, const PlanBatch& batch) {
  const int64_t documents = batch.end - batch.begin, length = batch.length;
  // Padding stands to the right, so that causal attention never shows it to a row; id 0 is as good
  // as any.
  DecoderBatch padded{at::empty({documents * length}, at::TensorOptions().dtype(at::kLong)),
                      std::vector<int64_t>(static_cast<size_t>(documents), length)};
  int64_t* ids = padded.ids.mutable_data_ptr<int64_t>();
  std::fill(ids, ids + documents * length, 0);
  for (int64_t d = 0; d < documents; ++d) {
    const PlanDocument document = plan.document(batch.begin + static_cast<uint32_t>(d));
    std::copy(document.tokens.begin(), document.tokens.end(), ids + d * length);
  }
  return padded;
}

bool CopyStateBits(const float* state, int64_t width, uint16_t* bits) {
  bool finite = true;
  for (int64_t i = 0; i < width; ++i) {
    bits[i] = FloatToBf16(state[i]);
    finite = finite && (bits[i] & 0x7f80u) != 0x7f80u;
  }
  return finite;
}
bool CopyStateBits(const uint16_t* state, int64_t width, uint16_t* bits) {
  bool finite = true;
  for (int64_t i = 0; i < width; ++i) {
    bits[i] = state[i];
    finite = finite && (bits[i] & 0x7f80u) != 0x7f80u;
  }
  return finite;
}

// Calls f with the tensor's data as float* or as the bits of bfloat16.
template <typename F>
void WithData(const at::Tensor& tensor, F f) {
  if (tensor.scalar_type() == at::kFloat) {
    f(tensor.const_data_ptr<float>());
  } else {
    f(static_cast<const uint16_t*>(tensor.const_data_ptr()));
  }
}

void ReserveStats(StatsRows* stats, size_t rows) {
  stats->entropy.resize(rows);
  stats->logsumexp.resize(rows);
  stats->top1_id.resize(rows);
  stats->top1_logprob.resize(rows);
  stats->next_logprob.resize(rows);
}

bool FitsStats(const RowSummary& summary, float next) {
  return std::abs(summary.logsumexp) < kStatsMagnitudeMax && std::abs(next) < kStatsMagnitudeMax &&
         std::isfinite(summary.entropy);
}

// Draws of one range of rows, in order; moved into the documents when all ranges are done.
struct DrawnRow {
  std::vector<int32_t> ids;
  std::vector<uint16_t> counts;
};

absl::Status NotCaptured(const SectionSpec& spec) {
  return absl::UnimplementedError(
      absl::StrCat(spec.Canonical(), ": teachers of this version do not capture it"));
}

}  // namespace

absl::StatusOr<CaptureRequest> MakeCaptureRequest(absl::Span<const SectionSpec> specs,
                                                  const ModelConfig& config) {
  CaptureRequest request;
  for (const SectionSpec& spec : specs) {
    bool again = false;
    switch (spec.kind) {
      case SectionKind::kStats:
        again = std::exchange(request.stats, true);
        break;
      case SectionKind::kLogitsSampled:
        again = std::exchange(request.draws, spec.draws) != 0;
        break;
      case SectionKind::kHiddenLast:
        again = std::exchange(request.hidden, true);
        if (spec.hidden_size != config.hidden_size) {
          return absl::InvalidArgumentError(absl::StrCat(
              spec.Canonical(), ": this teacher's hidden size is ", config.hidden_size));
        }
        if (spec.dtype != HiddenDtype::kBf16) return NotCaptured(spec);
        break;
      case SectionKind::kLogitsTopK:
      case SectionKind::kLogitsTopP:
      case SectionKind::kHiddenLayer:
        return NotCaptured(spec);
    }
    if (again) {
      return absl::InvalidArgumentError(
          absl::StrCat(spec.Canonical(), ": one chunk holds one section of a kind"));
    }
  }
  return request;
}

absl::StatusOr<Capturer> Capturer::Create(TeacherBackend& backend, uint32_t vocabulary) {
  const int64_t width = backend.config().vocab_size;
  if (vocabulary == 0 || vocabulary > width) {
    return absl::InvalidArgumentError(
        absl::StrCat("the tokenizer has ", vocabulary, " ids, the model's head only ", width));
  }
  const int64_t row_bytes = width * static_cast<int64_t>(c10::elementSize(backend.dtype()));
  return Capturer(backend, vocabulary,
                  std::clamp(kLogitBytesMax / row_bytes, kChunkRowsMin, kChunkRowsMax));
}

std::vector<Capturer::Row> Capturer::RowsOf(const Plan& plan, const PlanBatch& batch) {
  std::vector<Row> rows;
  for (uint32_t d = 0; d < batch.end - batch.begin; ++d) {
    const PlanDocument document = plan.document(batch.begin + d);
    for (uint32_t t = 0; t < document.rows(); ++t) {
      rows.push_back({d, t, static_cast<int64_t>(d) * batch.length + t, document.tokens[t + 1]});
    }
  }
  return rows;
}

absl::Status Capturer::CaptureLogits(const Plan& plan, const PlanBatch& batch,
                                     const CaptureRequest& request, absl::Span<const Row> rows,
                                     const at::Tensor& hidden,
                                     std::vector<CapturedDocument>* documents) {
  const int64_t count = static_cast<int64_t>(rows.size());
  at::Tensor logits;
  SH_RETURN_IF_ERROR(CallTorch([&] { logits = logits_.narrow(0, 0, count); }));
  SH_RETURN_IF_ERROR(backend_->Logits(hidden, logits));

  // As many ranges as threads, each with buffers of its own.
  const int64_t ranges = static_cast<int64_t>(workers_.size());
  const int64_t width = backend_->config().vocab_size;
  std::vector<DrawnRow> drawn(request.draws > 0 ? rows.size() : 0);
  FirstBad not_finite, too_large;
  WithData(logits, [&](const auto* data) {
    ParallelFor(0, ranges, 1, [&](int64_t first, int64_t last) {
      for (int64_t range = first; range < last; ++range) {
        RowCapture& worker = workers_[static_cast<size_t>(range)];
        for (int64_t r = count * range / ranges; r < count * (range + 1) / ranges; ++r) {
          const Row& row = rows[static_cast<size_t>(r)];
          CapturedDocument& document = (*documents)[row.document];
          if (!worker.Read(data + r * width)) {
            not_finite.Report(r);
            continue;
          }
          const RowSummary summary = worker.Summary();
          const float next = worker.LogProbability(row.next);
          if (!FitsStats(summary, next)) too_large.Report(r);
          if (request.stats) {
            document.stats.entropy[row.position] = summary.entropy;
            document.stats.logsumexp[row.position] = summary.logsumexp;
            document.stats.top1_id[row.position] = summary.top1_id;
            document.stats.top1_logprob[row.position] = summary.top1_logprob;
            document.stats.next_logprob[row.position] = next;
          }
          if (request.draws > 0) {
            DrawnRow& out = drawn[static_cast<size_t>(r)];
            worker.Draw(plan.document(batch.begin + row.document).key, row.position, request.draws,
                        &out.ids, &out.counts);
          }
        }
      }
    });
  });
  const auto blame = [&](int64_t r, absl::string_view what) {
    const Row& row = rows[static_cast<size_t>(r)];
    return BadRow(batch.begin + row.document, row.position, what);
  };
  if (not_finite.row() >= 0) return blame(not_finite.row(), "logits that are not finite");
  if (too_large.row() >= 0) return blame(too_large.row(), "logits too large to store");
  for (size_t r = 0; r < drawn.size(); ++r) {
    SampledRows& sampled = (*documents)[rows[r].document].sampled;
    sampled.ids.insert(sampled.ids.end(), drawn[r].ids.begin(), drawn[r].ids.end());
    sampled.counts.insert(sampled.counts.end(), drawn[r].counts.begin(), drawn[r].counts.end());
    sampled.offsets.push_back(static_cast<uint32_t>(sampled.ids.size()));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<CapturedDocument>> Capturer::Run(const Plan& plan,
                                                            const PlanBatch& batch,
                                                            const CaptureRequest& request,
                                                            BlockInfluence* influence,
                                                            absl::FunctionRef<void()> stepped) {
  if (plan.vocabulary() != vocabulary_) {
    return absl::InvalidArgumentError(absl::StrCat("the plan counts ", plan.vocabulary(),
                                                   " token ids, this teacher's tokenizer ",
                                                   vocabulary_));
  }
  const std::vector<Row> rows = RowsOf(plan, batch);
  std::vector<int64_t> places;
  places.reserve(rows.size());
  for (const Row& row : rows) places.push_back(row.place);

  SH_ASSIGN_OR_RETURN(
      const at::Tensor padded,
      backend_->Hidden(PaddedBatch(plan, batch),
                       [&](int64_t layer, const at::Tensor& input, const at::Tensor& output) {
                         if (influence != nullptr) influence->Add(layer, input, output, places);
                         stepped();
                       }));
  at::Tensor hidden;  // [rows, H], padding left out
  const int64_t count = static_cast<int64_t>(rows.size());
  SH_RETURN_IF_ERROR(CallTorch([&] {
    hidden = padded.index_select(
        0, at::from_blob(places.data(), {count}, at::TensorOptions().dtype(at::kLong)));
    if (!logits_.defined()) {
      logits_ = at::empty({chunk_rows_, backend_->config().vocab_size},
                          at::TensorOptions().dtype(backend_->dtype()));
    }
  }));
  while (workers_.size() < static_cast<size_t>(ComputeThreads()))
    workers_.emplace_back(vocabulary_);

  std::vector<CapturedDocument> documents(batch.end - batch.begin);
  const uint32_t hidden_size = static_cast<uint32_t>(backend_->config().hidden_size);
  for (uint32_t d = 0; d < documents.size(); ++d) {
    documents[d].document = batch.begin + d;
    documents[d].sampled.draws = request.draws;
    const size_t document_rows = plan.document(batch.begin + d).rows();
    if (request.stats) ReserveStats(&documents[d].stats, document_rows);
    if (request.hidden) {
      documents[d].hidden.hidden_size = hidden_size;
      documents[d].hidden.values.resize(document_rows * hidden_size);
    }
  }
  if (request.stats || request.draws > 0) {
    for (int64_t begin = 0; begin < count; begin += chunk_rows_) {
      const int64_t size = std::min(chunk_rows_, count - begin);
      at::Tensor chunk;
      SH_RETURN_IF_ERROR(CallTorch([&] { chunk = hidden.narrow(0, begin, size); }));
      SH_RETURN_IF_ERROR(CaptureLogits(
          plan, batch, request,
          absl::MakeConstSpan(rows).subspan(static_cast<size_t>(begin), static_cast<size_t>(size)),
          chunk, &documents));
      stepped();
    }
  }
  if (request.hidden) SH_RETURN_IF_ERROR(CaptureHidden(batch, rows, hidden, &documents));
  return documents;
}

absl::Status Capturer::CaptureHidden(const PlanBatch& batch, absl::Span<const Row> rows,
                                     const at::Tensor& hidden,
                                     std::vector<CapturedDocument>* documents) {
  constexpr int64_t kGrainRows = 64;
  const int64_t width = hidden.size(1);
  FirstBad not_finite;
  WithData(hidden, [&](const auto* data) {
    ParallelFor(0, static_cast<int64_t>(rows.size()), kGrainRows, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const Row& row = rows[static_cast<size_t>(r)];
        uint16_t* bits = (*documents)[row.document].hidden.values.data() + row.position * width;
        if (!CopyStateBits(data + r * width, width, bits)) not_finite.Report(r);
      }
    });
  });
  if (not_finite.row() < 0) return absl::OkStatus();
  const Row& row = rows[static_cast<size_t>(not_finite.row())];
  return BadRow(batch.begin + row.document, row.position, "hidden states that are not finite");
}

}  // namespace stillhouse

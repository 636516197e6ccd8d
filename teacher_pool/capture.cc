#include "teacher_pool/capture.h"

#include <algorithm>
#include <cmath>
#include <limits>
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
#include "storage/codec/top_tokens.h"

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
    padded.whole_lengths.push_back(static_cast<int64_t>(document.tokens.size()));
  }
  return padded;
}

uint16_t StateBits(float state) { return FloatToBf16(state); }
uint16_t StateBits(uint16_t state) { return state; }

// False where a magnitude is not below that of `limit`, a bf16 number.
template <typename T>
bool CopyStateBits(const T* state, int64_t width, uint16_t limit, uint16_t* bits) {
  bool below = true;
  for (int64_t i = 0; i < width; ++i) {
    bits[i] = StateBits(state[i]);
    below = below && (bits[i] & 0x7fffu) < limit;
  }
  return below;
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

bool FitsStats(const RowSummary& summary, float next) {
  return std::abs(summary.logsumexp) < kStatsMagnitudeMax && std::abs(next) < kStatsMagnitudeMax &&
         std::isfinite(summary.entropy);
}

bool IsHidden(const SectionSpec& spec) {
  return spec.kind == SectionKind::kHiddenLast || spec.kind == SectionKind::kHiddenLayer;
}

// What a row depends on besides the teacher.
struct RowText {
  const Digest& document;
  uint32_t position;
  int32_t next;  // the token that follows
};

// The documents of a batch, with room for their hidden states, otherwise without rows.
std::vector<CapturedDocument> NoDocuments(const Plan& plan, const PlanBatch& batch,
                                          const CaptureRequest& request) {
  std::vector<CapturedDocument> documents;
  for (uint32_t d = batch.begin; d < batch.end; ++d) {
    CapturedDocument& document = documents.emplace_back(CapturedDocument{d, {}});
    for (const SectionSpec& spec : request) {
      document.sections.push_back(NoRows(spec));
      if (auto* hidden = std::get_if<HiddenRows>(&document.sections.back())) {
        hidden->values.resize(static_cast<size_t>(plan.document(d).rows()) * spec.hidden_size);
      }
    }
  }
  return documents;
}

// One row of a section of logits.
SectionRows CaptureRow(const SectionSpec& spec, const RowText& text, RowCapture& logits) {
  SectionRows captured = NoRows(spec);
  if (auto* stats = std::get_if<StatsRows>(&captured)) {
    const RowSummary summary = logits.Summary();
    stats->entropy.push_back(summary.entropy);
    stats->logsumexp.push_back(summary.logsumexp);
    stats->top1_id.push_back(summary.top1_id);
    stats->top1_logprob.push_back(summary.top1_logprob);
    stats->next_logprob.push_back(logits.LogProbability(text.next));
  } else if (auto* sampled = std::get_if<SampledRows>(&captured)) {
    logits.Draw(text.document, text.position, spec.draws, &sampled->ids, &sampled->counts);
    sampled->offsets.push_back(static_cast<uint32_t>(sampled->ids.size()));
  } else {
    TopRule rule{.k = spec.k};
    if (spec.kind == SectionKind::kLogitsTopP) rule.p = spec.p_millionths * 1e-6;
    AppendTopRow(logits.LogProbabilities(), rule, &std::get<TopTokenRows>(captured));
  }
  return captured;
}

}  // namespace

absl::StatusOr<CaptureRequest> MakeCaptureRequest(absl::Span<const SectionSpec> specs,
                                                  const ModelConfig& config) {
  for (size_t i = 0; i < specs.size(); ++i) {
    const SectionSpec& spec = specs[i];
    if (std::find(specs.begin(), specs.begin() + i, spec) != specs.begin() + i) {
      return absl::InvalidArgumentError(absl::StrCat(spec.Canonical(), " is asked for twice"));
    }
    if (IsHidden(spec) && spec.hidden_size != config.hidden_size) {
      return absl::InvalidArgumentError(
          absl::StrCat(spec.Canonical(), ": this teacher's hidden size is ", config.hidden_size));
    }
    if (spec.kind == SectionKind::kHiddenLayer && spec.layer >= config.layers) {
      return absl::InvalidArgumentError(
          absl::StrCat(spec.Canonical(), ": this teacher has ", config.layers, " layers"));
    }
  }
  return CaptureRequest(specs.begin(), specs.end());
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
  std::vector<SectionRows> captured(rows.size() * request.size());  // in order when all are done
  FirstBad not_finite, too_large;
  WithData(logits, [&](const auto* data) {
    ParallelFor(0, ranges, 1, [&](int64_t first, int64_t last) {
      for (int64_t range = first; range < last; ++range) {
        RowCapture& worker = workers_[static_cast<size_t>(range)];
        for (int64_t r = count * range / ranges; r < count * (range + 1) / ranges; ++r) {
          const Row& row = rows[static_cast<size_t>(r)];
          if (!worker.Read(data + r * width)) {
            not_finite.Report(r);
            continue;
          }
          if (!FitsStats(worker.Summary(), worker.LogProbability(row.next))) too_large.Report(r);
          const Digest& key = plan.document(batch.begin + row.document).key;
          for (size_t s = 0; s < request.size(); ++s) {
            if (IsHidden(request[s])) continue;
            captured[static_cast<size_t>(r) * request.size() + s] =
                CaptureRow(request[s], {key, row.position, row.next}, worker);
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
  for (size_t r = 0; r < rows.size(); ++r) {
    for (size_t s = 0; s < request.size(); ++s) {
      if (IsHidden(request[s])) continue;
      AppendRow(captured[r * request.size() + s], 0, &(*documents)[rows[r].document].sections[s]);
    }
  }
  return absl::OkStatus();
}

absl::Status Capturer::CaptureAllLogits(const Plan& plan, const PlanBatch& batch,
                                        const CaptureRequest& request, absl::Span<const Row> rows,
                                        const at::Tensor& hidden, absl::FunctionRef<void()> stepped,
                                        std::vector<CapturedDocument>* documents) {
  const int64_t count = static_cast<int64_t>(rows.size());
  SH_RETURN_IF_ERROR(CallTorch([&] {
    if (!logits_.defined()) {
      logits_ = at::empty({chunk_rows_, backend_->config().vocab_size},
                          at::TensorOptions().dtype(backend_->dtype()));
    }
  }));
  while (workers_.size() < static_cast<size_t>(ComputeThreads())) {
    workers_.emplace_back(vocabulary_);
  }
  for (int64_t begin = 0; begin < count; begin += chunk_rows_) {
    const int64_t size = std::min(chunk_rows_, count - begin);
    at::Tensor chunk;
    SH_RETURN_IF_ERROR(CallTorch([&] { chunk = hidden.narrow(0, begin, size); }));
    SH_RETURN_IF_ERROR(CaptureLogits(
        plan, batch, request, rows.subspan(static_cast<size_t>(begin), static_cast<size_t>(size)),
        chunk, documents));
    stepped();
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
  std::vector<CapturedDocument> documents = NoDocuments(plan, batch, request);

  absl::Status of_layers;
  SH_ASSIGN_OR_RETURN(
      const at::Tensor padded,
      backend_->Hidden(PaddedBatch(plan, batch),
                       [&](int64_t layer, const at::Tensor& input, const at::Tensor& output) {
                         if (influence != nullptr) influence->Add(layer, input, output, places);
                         of_layers.Update(CaptureHidden(batch, request, SectionKind::kHiddenLayer,
                                                        layer, rows, output, &documents));
                         stepped();
                       }));
  SH_RETURN_IF_ERROR(of_layers);
  SH_RETURN_IF_ERROR(
      CaptureHidden(batch, request, SectionKind::kHiddenLast, 0, rows, padded, &documents));
  if (std::all_of(request.begin(), request.end(), IsHidden)) return documents;
  at::Tensor hidden;  // without padding
  SH_RETURN_IF_ERROR(CallTorch([&] {
    hidden =
        padded.index_select(0, at::from_blob(places.data(), {static_cast<int64_t>(places.size())},
                                             at::TensorOptions().dtype(at::kLong)));
  }));
  SH_RETURN_IF_ERROR(CaptureAllLogits(plan, batch, request, rows, hidden, stepped, &documents));
  return documents;
}

absl::Status Capturer::CaptureHidden(const PlanBatch& batch, const CaptureRequest& request,
                                     SectionKind kind, int64_t layer, absl::Span<const Row> rows,
                                     const at::Tensor& padded,
                                     std::vector<CapturedDocument>* documents) {
  constexpr int64_t kGrainRows = 64;
  const int64_t width = padded.size(1);
  for (size_t s = 0; s < request.size(); ++s) {
    if (request[s].kind != kind || request[s].layer != layer) continue;
    const uint16_t limit = request[s].dtype == HiddenDtype::kInt8
                               ? FloatToBf16(kHiddenInt8Max)
                               : FloatToBf16(std::numeric_limits<float>::infinity());
    FirstBad bad;
    WithData(padded, [&](const auto* data) {
      ParallelFor(0, static_cast<int64_t>(rows.size()), kGrainRows,
                  [&](int64_t begin, int64_t end) {
                    for (int64_t r = begin; r < end; ++r) {
                      const Row& row = rows[static_cast<size_t>(r)];
                      auto& states = std::get<HiddenRows>((*documents)[row.document].sections[s]);
                      uint16_t* bits = states.values.data() + row.position * width;
                      if (!CopyStateBits(data + row.place * width, width, limit, bits))
                        bad.Report(r);
                    }
                  });
    });
    if (bad.row() < 0) continue;
    const Row& row = rows[static_cast<size_t>(bad.row())];
    return BadRow(batch.begin + row.document, row.position,
                  "hidden states that are not finite or too large to store");
  }
  return absl::OkStatus();
}

}  // namespace stillhouse

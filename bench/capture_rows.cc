// capture_rows MODEL TEXT_FOLDER OUT [DOCUMENTS]: what the teacher says about real text, for the
// codec benchmarks (bench/teacher_rows.h). Pages of the folder, in order of name, as documents of
// 512 tokens; bf16 weights and logits, as a teacher worker has them.
#include <ATen/Functions.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>

#include "bench/teacher_rows.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/model_files.h"
#include "model/decoder.h"
#include "teacher_pool/row_capture.h"

namespace stillhouse {
namespace {

constexpr size_t kDocumentTokens = 512;

absl::StatusOr<std::vector<std::vector<int32_t>>> Documents(const Tokenizer& tokenizer,
                                                            const std::string& folder,
                                                            size_t count) {
  SH_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(folder));
  std::vector<std::vector<int32_t>> documents;
  for (const std::string& name : names) {
    if (name.front() == '.') continue;
    SH_ASSIGN_OR_RETURN(const std::string text, ReadFile(JoinPath(folder, name)));
    SH_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, tokenizer.Encode(text));
    // One document a page, so that pages of every kind are among them.
    if (ids.size() < kDocumentTokens) continue;
    documents.emplace_back(ids.begin(), ids.begin() + kDocumentTokens);
    if (documents.size() == count) break;
  }
  return documents;
}

void AddRow(const float* logits, int64_t vocabulary, RowCapture* capture, const Digest& document,
            uint32_t position, int32_t next, DocumentRows* rows) {
  SH_CHECK(capture->Read(logits), "a logit that is not finite");
  const RowSummary summary = capture->Summary();
  rows->stats.entropy.push_back(summary.entropy);
  rows->stats.logsumexp.push_back(summary.logsumexp);
  rows->stats.top1_id.push_back(summary.top1_id);
  rows->stats.top1_logprob.push_back(summary.top1_logprob);
  rows->stats.next_logprob.push_back(capture->LogProbability(next));
  capture->Draw(document, position, kBenchDraws, &rows->sampled.ids, &rows->sampled.counts);
  rows->sampled.offsets.push_back(static_cast<uint32_t>(rows->sampled.ids.size()));
  std::vector<int32_t> ids(static_cast<size_t>(vocabulary));
  std::iota(ids.begin(), ids.end(), 0);
  std::nth_element(ids.begin(), ids.begin() + kBenchTop, ids.end(),
                   [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  double rest = 0;
  for (size_t i = kBenchTop; i < ids.size(); ++i) {
    rest += std::exp(static_cast<double>(logits[ids[i]]) - summary.logsumexp);
  }
  std::sort(ids.begin(), ids.begin() + kBenchTop);
  for (uint32_t i = 0; i < kBenchTop; ++i) {
    rows->top_ids.push_back(ids[i]);
    rows->top_logprobs.push_back(capture->LogProbability(ids[i]));
  }
  rows->rest_logprobs.push_back(static_cast<float>(std::log(rest)));
}

absl::Status Capture(const std::string& model, const std::string& folder, const std::string& out,
                     size_t count) {
  SH_ASSIGN_OR_RETURN(const ModelFiles files, OpenModelFiles(model));
  SH_ASSIGN_OR_RETURN(const DecoderWeights weights, LoadDecoder(files, at::kBFloat16));
  SH_ASSIGN_OR_RETURN(const auto documents, Documents(*files.tokenizer, folder, count));
  const int64_t vocabulary = files.tokenizer->size();
  const c10::NoGradGuard no_grad;
  RowCapture capture(vocabulary);
  TeacherRows rows;
  rows.source = absl::StrCat(BaseName(model), " over ", documents.size(), " pages of the handbook");
  rows.vocabulary = static_cast<uint32_t>(vocabulary);
  for (size_t d = 0; d < documents.size(); ++d) {
    DecoderBatch batch;
    batch.ids = at::empty({kDocumentTokens}, at::kLong);
    std::copy(documents[d].begin(), documents[d].end(), batch.ids.data_ptr<int64_t>());
    batch.lengths = {kDocumentTokens};
    SH_ASSIGN_OR_RETURN(const at::Tensor hidden, ForwardHidden(weights, batch));
    const at::Tensor logits = at::linear(hidden, weights.head).to(at::kFloat).contiguous();
    DocumentRows& document = rows.documents.emplace_back();
    document.sampled.draws = kBenchDraws;
    const Digest key = Sha256Of(absl::StrCat("bench document ", d));
    for (size_t row = 0; row + 1 < kDocumentTokens; ++row) {
      AddRow(logits.data_ptr<float>() + static_cast<int64_t>(row) * logits.size(1), vocabulary,
             &capture, key, static_cast<uint32_t>(row), documents[d][row + 1], &document);
    }
    std::fprintf(stderr, "capture_rows: %zu of %zu documents\r", d + 1, documents.size());
  }
  std::fprintf(stderr, "\n");
  return WriteTeacherRows(out, rows);
}

}  // namespace
}  // namespace stillhouse

int main(int argc, char** argv) {
  if (argc < 4 || argc > 5) {
    std::fprintf(stderr, "usage: capture_rows MODEL TEXT_FOLDER OUT [DOCUMENTS]\n");
    return stillhouse::kExitUsage;
  }
  const size_t documents = argc == 5 ? std::strtoul(argv[4], nullptr, 10) : 32;
  const absl::Status status = stillhouse::Capture(argv[1], argv[2], argv[3], documents);
  if (status.ok()) return stillhouse::kExitOk;
  std::fprintf(stderr, "capture_rows: %s\n", std::string(status.message()).c_str());
  return stillhouse::ExitCodeFor(status);
}

// One timed run of a decoder in bf16, for tools/bench.py, which alternates it with transformers.
// Prints one line of JSON.
//
//   model_bench forward MODEL BATCH LENGTH TIMES   logits of BATCH documents of LENGTH random ids:
//                                                  {"tokens", "seconds", "top1"} with the most
//                                                  likely id after each token of the first document
//   model_bench generate MODEL PROMPT TOKENS TIMES TOKENS greedy ones after PROMPT random ids:
//                                                  {"tokens", "seconds", "ids"}
// The ids are those that bench_rows/model_python.py makes; threads are OMP_NUM_THREADS'.
#include <ATen/Functions.h>
#include <c10/core/GradMode.h>
#include <malloc.h>

#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "common/status.h"
#include "formats/model_files.h"
#include "model/decoder.h"
#include "model/generate.h"

namespace stillhouse {
namespace {

using Clock = std::chrono::steady_clock;
double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Number `i` of the ids both programs use: multiplicative hashing, the same in Python.
int32_t IdAt(uint64_t i, int64_t vocabulary) {
  return static_cast<int32_t>((i * 2654435761u + 12345) % (1ull << 32) %
                              static_cast<uint64_t>(vocabulary));
}

nlohmann::json Forward(const DecoderWeights& weights, int64_t batch, int64_t length, int times) {
  const c10::NoGradGuard no_grad;
  DecoderBatch documents;
  documents.ids = at::empty({batch * length}, at::kLong);
  for (int64_t i = 0; i < batch * length; ++i) {
    documents.ids.data_ptr<int64_t>()[i] =
        IdAt(static_cast<uint64_t>(i), weights.config.vocab_size);
  }
  documents.lengths.assign(static_cast<size_t>(batch), length);
  at::Tensor logits;
  const auto run = [&] {
    const auto hidden = ForwardHidden(weights, documents);
    SH_CHECK_OK(hidden);
    logits = at::linear(*hidden, weights.head);
  };
  run();  // the first one lays out memory and oneDNN's products
  const auto start = Clock::now();
  for (int i = 0; i < times; ++i) run();
  const double seconds = SecondsSince(start);
  const at::Tensor top1 = logits.narrow(0, 0, length).argmax(1);
  std::vector<int64_t> ids(top1.data_ptr<int64_t>(), top1.data_ptr<int64_t>() + length);
  return {{"tokens", batch * length * times}, {"seconds", seconds}, {"top1", ids}};
}

nlohmann::json Generate(const DecoderWeights& weights, int64_t prompt, int64_t tokens, int times) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < prompt; ++i) {
    ids.push_back(IdAt(static_cast<uint64_t>(i), weights.config.vocab_size));
  }
  GenerateOptions options;
  options.tokens_max = tokens;
  options.vocabulary = weights.config.vocab_size;
  std::vector<int32_t> generated;
  const auto run = [&] {
    auto made = GenerateTokens(weights, ids, options);
    SH_CHECK_OK(made);
    generated = *std::move(made);
    SH_CHECK(static_cast<int64_t>(generated.size()) == tokens);
  };
  run();
  const auto start = Clock::now();
  for (int i = 0; i < times; ++i) run();
  return {{"tokens", tokens * times}, {"seconds", SecondsSince(start)}, {"ids", generated}};
}

absl::Status Run(const std::string& mode, const std::string& model, int64_t a, int64_t b,
                 int times) {
  mallopt(M_MMAP_MAX, 0);  // as the teacher worker keeps its memory
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  SH_ASSIGN_OR_RETURN(const ModelFiles files, OpenModelFiles(model));
  SH_ASSIGN_OR_RETURN(const DecoderWeights weights, LoadDecoder(files, at::kBFloat16));
  if (mode != "forward" && mode != "generate") {
    return absl::InvalidArgumentError(absl::StrCat("no mode ", mode));
  }
  const nlohmann::json result =
      mode == "forward" ? Forward(weights, a, b, times) : Generate(weights, a, b, times);
  std::printf("%s\n", result.dump().c_str());
  return absl::OkStatus();
}

}  // namespace
}  // namespace stillhouse

int main(int argc, char** argv) {
  int64_t a = 0, b = 0;
  int times = 0;
  if (argc != 6 || !absl::SimpleAtoi(argv[3], &a) || !absl::SimpleAtoi(argv[4], &b) ||
      !absl::SimpleAtoi(argv[5], &times) || a < 1 || b < 1 || times < 1) {
    std::fprintf(stderr, "usage: model_bench forward|generate MODEL NUMBER NUMBER TIMES\n");
    return 2;
  }
  const absl::Status status = stillhouse::Run(argv[1], argv[2], a, b, times);
  if (!status.ok()) std::fprintf(stderr, "model_bench: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}

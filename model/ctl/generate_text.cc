#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/model_files.h"
#include "model/ctl/commands.h"
#include "model/decoder.h"

namespace stillhouse {

absl::Status Generate(const GenerateFlags& flags) {
  SH_RETURN_IF_ERROR(ValidateSampling(flags.sampling));
  SH_ASSIGN_OR_RETURN(const ModelFiles files, OpenModelFiles(flags.model));
  if (files.tokenizer == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(flags.model, ": has no tokenizer"));
  }
  const Tokenizer& tokenizer = *files.tokenizer;
  SH_ASSIGN_OR_RETURN_AT(std::vector<int32_t> ids, tokenizer.Encode(flags.prompt), "the prompt");
  if (tokenizer.adds_bos() && tokenizer.bos_id().has_value()) {
    ids.insert(ids.begin(), *tokenizer.bos_id());
  }
  if (ids.empty()) return absl::InvalidArgumentError("the prompt is empty");
  const int64_t tokens_max = static_cast<int64_t>(ids.size()) + flags.max_tokens;
  SH_ASSIGN_OR_RETURN_AT(const DecoderWeights weights,
                         LoadDecoder(files, flags.dtype == "fp32" ? at::kFloat : at::kBFloat16),
                         flags.model);
  SH_ASSIGN_OR_RETURN_AT(Decoding decoding, Decoding::Create(weights, tokens_max),
                         "prompt and --max-tokens together");

  RandomStream random(flags.seed);
  std::vector<int32_t> generated;
  absl::Span<const int32_t> next = ids;
  while (static_cast<int64_t>(generated.size()) < flags.max_tokens) {
    SH_ASSIGN_OR_RETURN(const std::vector<float> logits, decoding.Extend(next));
    // Rows at or above the tokenizer's size are padding and stand for no text.
    const size_t real = std::min(logits.size(), static_cast<size_t>(tokenizer.size()));
    SH_ASSIGN_OR_RETURN(const int32_t id,
                        PickToken(absl::MakeConstSpan(logits).first(real), flags.sampling, random));
    if (id == files.config.eos_id || id == tokenizer.eos_id()) break;
    generated.push_back(id);
    next = absl::MakeConstSpan(generated).last(1);
  }
  SH_ASSIGN_OR_RETURN(std::string text, tokenizer.Decode(generated, /*skip_special=*/true));
  text = absl::StrCat(flags.prompt, text, "\n");
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    return ErrnoStatus("writing", "standard output");
  }
  return absl::OkStatus();
}

}  // namespace stillhouse

#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/model_files.h"
#include "model/ctl/commands.h"
#include "model/ctl/load_progress.h"
#include "model/decoder.h"

namespace stillhouse {

namespace {

// What ends a text: the model's own end tokens, and those that the user names.
absl::StatusOr<std::vector<int32_t>> StopIds(const GenerateFlags& flags, const ModelFiles& files) {
  std::vector<int32_t> ids;
  if (files.tokenizer->eos_id().has_value()) ids.push_back(*files.tokenizer->eos_id());
  const ModelConfig& config = files.config;
  if (config.eos_id.has_value()) ids.push_back(static_cast<int32_t>(*config.eos_id));
  for (const int64_t id : config.more_eos_ids) ids.push_back(static_cast<int32_t>(id));
  for (const std::string& text : flags.stops) {
    SH_ASSIGN_OR_RETURN_AT(const std::vector<int32_t> encoded, files.tokenizer->Encode(text),
                           "--stop");
    if (encoded.size() != 1) {
      return absl::InvalidArgumentError(absl::StrCat("--stop \"", text, "\" is ", encoded.size(),
                                                     " tokens of this model; it must be one"));
    }
    ids.push_back(encoded.front());
  }
  return ids;
}

}  // namespace

absl::Status Generate(const GenerateFlags& flags) {
  SH_RETURN_IF_ERROR(ValidateSampling(flags.sampling));
  SH_ASSIGN_OR_RETURN(const ModelFiles files, OpenModelFiles(flags.model));
  if (files.tokenizer == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(flags.model, ": has no tokenizer"));
  }
  const Tokenizer& tokenizer = *files.tokenizer;
  GenerateOptions options;
  options.tokens_max = flags.max_tokens;
  options.vocabulary = tokenizer.size();
  options.sampling = flags.sampling;
  options.seed = flags.seed;
  SH_ASSIGN_OR_RETURN(options.stop_ids, StopIds(flags, files));
  SH_ASSIGN_OR_RETURN_AT(std::vector<int32_t> prompt, tokenizer.Encode(flags.prompt), "the prompt");
  if (tokenizer.adds_bos() && tokenizer.bos_id().has_value()) {
    prompt.insert(prompt.begin(), *tokenizer.bos_id());
  }
  SH_ASSIGN_OR_RETURN_AT(
      const DecoderWeights weights,
      LoadDecoder(files, flags.dtype == "fp32" ? at::kFloat : at::kBFloat16, ShowLoading()),
      flags.model);
  SH_ASSIGN_OR_RETURN(const std::vector<int32_t> generated,
                      GenerateTokens(weights, prompt, options));
  SH_ASSIGN_OR_RETURN(std::string text, tokenizer.Decode(generated, /*skip_special=*/true));
  text = absl::StrCat(flags.prompt, text, "\n");
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    return ErrnoStatus("writing", "standard output");
  }
  return absl::OkStatus();
}

}  // namespace stillhouse

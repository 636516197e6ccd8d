#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/model_files.h"
#include "formats/tokenizer.h"
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

absl::Status Print(absl::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    return ErrnoStatus("writing", "standard output");
  }
  return absl::OkStatus();
}

// The prompt as it was given, and after it the text of the tokens as they come: whole characters,
// without special tokens.
class TextPrinter {
 public:
  // All must outlive *this. `ids` are the prompt's.
  TextPrinter(const Tokenizer& tokenizer, const std::string& prompt,
              const std::vector<int32_t>& ids)
      : stream_(tokenizer, /*skip_special=*/true), prompt_(prompt), ids_(ids) {}

  absl::Status Add(int32_t id) {
    SH_RETURN_IF_ERROR(Begin());
    return PrintChunk(stream_.Add(id));
  }
  absl::Status Finish() {
    SH_RETURN_IF_ERROR(Begin());
    SH_RETURN_IF_ERROR(PrintChunk(stream_.Finish()));
    return Print("\n");
  }

 private:
  // Not before the first token, so that nothing is printed where the prompt is refused.
  absl::Status Begin() {
    if (begun_) return absl::OkStatus();
    begun_ = true;
    SH_RETURN_IF_ERROR(Print(prompt_));
    return stream_.Begin(ids_);
  }
  // Bytes that break what is on the screen already are shown after it.
  absl::Status PrintChunk(absl::StatusOr<std::string> chunk) {
    if (absl::IsFailedPrecondition(chunk.status())) chunk = stream_.GiveUp();
    SH_RETURN_IF_ERROR(chunk.status());
    return chunk->empty() ? absl::OkStatus() : Print(*chunk);
  }

  StreamDecoder stream_;
  const std::string& prompt_;
  const std::vector<int32_t>& ids_;
  bool begun_ = false;
};

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
  TextPrinter printer(tokenizer, flags.prompt, prompt);
  options.on_token = [&printer](int32_t id) { return printer.Add(id); };
  SH_RETURN_IF_ERROR(GenerateTokens(weights, prompt, options).status());
  return printer.Finish();
}

}  // namespace stillhouse

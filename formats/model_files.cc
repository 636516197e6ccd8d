#include "formats/model_files.h"

#include <sys/stat.h>

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/gguf_model.h"
#include "formats/json.h"
#include "formats/safetensors_model.h"
#include "formats/tokenizer_spec.h"

namespace stillhouse {
namespace {

constexpr uint64_t kConfigBytesMax = 1 << 20;

bool IsFolder(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

// "org/name" as the Hugging Face hub writes it: one slash, no dots at the ends, no path-like parts.
bool LooksLikeHubId(absl::string_view path) {
  const size_t slash = path.find('/');
  if (slash == absl::string_view::npos || slash == 0 || slash + 1 == path.size()) return false;
  if (path.find('/', slash + 1) != absl::string_view::npos || path.front() == '.') return false;
  return std::all_of(path.begin(), path.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '/' || c == '-' || c == '_' ||
           c == '.';
  });
}

absl::Status NotThere(const std::string& path) {
  if (!LooksLikeHubId(path) || absl::EndsWith(path, ".gguf")) {
    return absl::NotFoundError(absl::StrCat(
        path, ": no such file or folder; a model is a GGUF file or a Hugging Face folder"));
  }
  return absl::NotFoundError(absl::StrCat(
      path,
      ": no such folder here. If it is a model of the Hugging Face hub, download it first: "
      "`hf download ",
      path, " --local-dir ", path,
      "` (a model is looked for at the path given, nowhere else; nothing is downloaded by "
      "itself)"));
}

// What a folder without config.json lacks, or which file in it was meant.
absl::Status NoConfig(const std::string& folder) {
  const absl::StatusOr<std::vector<std::string>> names = ListFolder(folder);
  std::string hint = "a model is a GGUF file or a Hugging Face folder";
  if (names.ok()) {
    for (const std::string& name : *names) {
      if (!absl::EndsWith(name, ".gguf")) continue;
      hint = absl::StrCat("for the GGUF file in it, give ", JoinPath(folder, name));
      break;
    }
  }
  return absl::NotFoundError(absl::StrCat(folder, ": no config.json in this folder; ", hint));
}

// Instruct models name there the ids that end an answer, beside the one of config.json.
absl::Status ReadGenerationConfig(const std::string& folder, ModelConfig& config) {
  const std::string path = JoinPath(folder, "generation_config.json");
  if (!PathExists(path) || !config.eos_id.has_value()) return absl::OkStatus();
  SH_ASSIGN_OR_RETURN(const Json json, ReadJsonFile(path, kConfigBytesMax));
  const JsonFields fields(json, path);
  const Json* ends = fields.Find("eos_token_id");
  if (ends == nullptr) return absl::OkStatus();
  for (const Json& end : ends->is_array() ? *ends : Json::array({*ends})) {
    if (!end.is_number_integer()) return fields.WrongType("eos_token_id", "an integer or a list");
    const auto id = end.get<int64_t>();
    std::vector<int64_t>& more = config.more_eos_ids;
    if (id != *config.eos_id && std::find(more.begin(), more.end(), id) == more.end()) {
      more.push_back(id);
    }
    if (more.size() >= kEndIdsMax) break;  // Validate tells
  }
  return Annotate(config.Validate(), path);
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> OpenFolderTokenizer(const std::string& folder,
                                                                     const ModelConfig* config) {
  const std::string path = JoinPath(folder, "tokenizer.json");
  SH_ASSIGN_OR_RETURN(std::string json, ReadFile(path, kTokenizerJsonBytesMax));
  SH_ASSIGN_OR_RETURN(TokenizerSpec spec, ParseTokenizerJson(json, path));
  spec.files.emplace_back("tokenizer.json", std::move(json));
  for (const char* name : {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                           "chat_template.jinja", "vocab.json", "merges.txt"}) {
    const std::string other = JoinPath(folder, name);
    if (!PathExists(other)) continue;
    SH_ASSIGN_OR_RETURN(std::string text, ReadFile(other, kTokenizerJsonBytesMax));
    if (std::string(name) == "tokenizer_config.json") {
      SH_RETURN_IF_ERROR(ReadTokenizerConfig(text, other, spec));
    }
    spec.files.emplace_back(name, std::move(text));
  }
  if (config != nullptr) {
    const auto fill = [&spec](std::optional<int32_t>& id, const std::optional<int64_t>& from) {
      const bool known = from.has_value() && *from < static_cast<int64_t>(spec.tokens.size());
      if (!id.has_value() && known) id = static_cast<int32_t>(*from);
    };
    fill(spec.bos_id, config->bos_id);
    fill(spec.eos_id, config->eos_id);
    fill(spec.pad_id, config->pad_id);
  }
  auto tokenizer = MakeTokenizer(std::move(spec));
  SH_RETURN_IF_ERROR_AT(tokenizer, path);
  return tokenizer;
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> OpenGgufTokenizer(const GgufFile& file) {
  SH_ASSIGN_OR_RETURN_AT(TokenizerSpec spec, GgufTokenizerSpec(file), file.path());
  auto tokenizer = MakeTokenizer(std::move(spec));
  SH_RETURN_IF_ERROR_AT(tokenizer, file.path());
  return tokenizer;
}

}  // namespace

absl::StatusOr<ModelFiles> OpenModelFiles(const std::string& path) {
  if (!PathExists(path)) return NotThere(path);
  ModelFiles model;
  model.path = path;
  if (IsFolder(path)) {
    model.format = "huggingface";
    const std::string config_path = JoinPath(path, "config.json");
    if (!PathExists(config_path)) {
      SH_ASSIGN_OR_RETURN(const std::string first, FindSplitGguf(path));
      return first.empty() ? NoConfig(path) : OpenModelFiles(first);
    }
    SH_ASSIGN_OR_RETURN(const std::string config, ReadFile(config_path, kConfigBytesMax));
    SH_ASSIGN_OR_RETURN(model.config, ParseConfigJson(config, config_path));
    SH_RETURN_IF_ERROR(ReadGenerationConfig(path, model.config));
    SH_ASSIGN_OR_RETURN(model.weights, OpenFolderWeights(path, model.config));
    SH_ASSIGN_OR_RETURN(model.tokenizer, OpenFolderTokenizer(path, &model.config));
  } else {
    model.format = "gguf";
    SH_ASSIGN_OR_RETURN(const std::shared_ptr<const GgufFile> file, GgufFile::OpenWhole(path));
    SH_ASSIGN_OR_RETURN_AT(model.config, GgufModelConfig(*file), path);
    SH_ASSIGN_OR_RETURN(model.weights, GgufModelWeights(file, model.config));
    SH_ASSIGN_OR_RETURN(model.tokenizer, OpenGgufTokenizer(*file));
  }
  if (model.tokenizer->size() > model.config.vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": the tokenizer has ",
                                                   model.tokenizer->size(), " tokens, the model ",
                                                   model.config.vocab_size, " rows"));
  }
  return model;
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> OpenTokenizer(const std::string& path) {
  if (!PathExists(path)) return NotThere(path);
  if (!IsFolder(path)) {
    SH_ASSIGN_OR_RETURN(const std::shared_ptr<const GgufFile> file, GgufFile::OpenWhole(path));
    return OpenGgufTokenizer(*file);
  }
  const std::string config_path = JoinPath(path, "config.json");
  if (!PathExists(config_path) && !PathExists(JoinPath(path, "tokenizer.json"))) {
    SH_ASSIGN_OR_RETURN(const std::string first, FindSplitGguf(path));
    if (!first.empty()) return OpenTokenizer(first);
  }
  if (!PathExists(config_path)) return OpenFolderTokenizer(path, nullptr);
  SH_ASSIGN_OR_RETURN(const std::string config, ReadFile(config_path, kConfigBytesMax));
  // A model that we cannot run may still have a tokenizer that we can.
  const absl::StatusOr<ModelConfig> parsed = ParseConfigJson(config, config_path);
  return OpenFolderTokenizer(path, parsed.ok() ? &*parsed : nullptr);
}

}  // namespace stillhouse

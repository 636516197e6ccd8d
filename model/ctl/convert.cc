#include <algorithm>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/model_files.h"
#include "model/ctl/commands.h"

namespace stillhouse {
namespace {

// Of --dtype, of a tensor, of config.json; "" for what is stored.
struct Dtype {
  absl::string_view flag, stored, config;
};
constexpr Dtype kDtypes[] = {{"fp32", "F32", "float32"},
                             {"bf16", "BF16", "bfloat16"},
                             {"fp16", "F16", "float16"},
                             {"q8_0", "Q8_0", ""},
                             {"stored", "", ""}};

const Dtype* FindDtype(absl::string_view flag) {
  for (const Dtype& known : kDtypes) {
    if (known.flag == flag) return &known;
  }
  return nullptr;
}

absl::Status WriteFolder(const ConvertFlags& flags, const Dtype& dtype, ModelFiles& files) {
  if (dtype.stored == "Q8_0") {
    return absl::InvalidArgumentError(
        "q8_0 is a type of GGUF files: give --out NAME.gguf, or another dtype");
  }
  // What config.json says is what a loader takes where nothing is asked for.
  const std::string& matrices = files.weights->tensors().front().stored_dtype;
  for (const Dtype& known : kDtypes) {
    if (known.stored == (dtype.stored.empty() ? absl::string_view(matrices) : dtype.stored)) {
      files.config.dtype = std::string(known.config);
    }
  }
  SH_ASSIGN_OR_RETURN_AT(const std::vector<TensorToWrite> tensors,
                         TensorsToWrite(files.weights, std::string(dtype.stored)), flags.model);
  return WriteHuggingFaceFolder(flags.out, files.config, *files.tokenizer, tensors,
                                {.shard_bytes_max = flags.shard_bytes_max});
}

// The folder that the path names or, while it is not there, the one in which it would be made; all
// links followed.
std::filesystem::path ResolvedFolder(const std::string& path) {
  std::error_code error;
  return std::filesystem::weakly_canonical(std::filesystem::absolute(path, error), error);
}

// A model's folder holds the files of one model, may be shared, and is known by what lies in it.
absl::Status CheckOutsideSource(const ConvertFlags& flags) {
  std::error_code error;
  if (!std::filesystem::is_directory(flags.model, error)) return absl::OkStatus();
  const std::filesystem::path model = ResolvedFolder(flags.model), out = ResolvedFolder(flags.out);
  const auto [differs, ignored] = std::mismatch(model.begin(), model.end(), out.begin(), out.end());
  if (model.empty() || differs != model.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--out ", flags.out, " lies in the model's own folder; give another place"));
}

}  // namespace

absl::Status Convert(const ConvertFlags& flags) {
  if (flags.out.empty()) return absl::InvalidArgumentError("--out is empty");
  if (PathExists(flags.out)) return absl::AlreadyExistsError(absl::StrCat(flags.out, ": is there"));
  SH_RETURN_IF_ERROR(CheckOutsideSource(flags));
  const Dtype* dtype = FindDtype(flags.dtype);
  if (dtype == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("no dtype ", flags.dtype));
  }
  SH_ASSIGN_OR_RETURN(ModelFiles files, OpenModelFiles(flags.model));
  if (files.tokenizer == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(flags.model, ": has no tokenizer"));
  }
  if (absl::EndsWith(flags.out, ".gguf")) {
    return WriteGguf(flags.out, files, std::string(dtype->stored));
  }
  return WriteFolder(flags, *dtype, files);
}

}  // namespace stillhouse

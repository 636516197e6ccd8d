#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <utility>

#include "absl/container/flat_hash_map.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/json.h"
#include "formats/model_files.h"
#include "formats/safetensors.h"

namespace stillhouse {
namespace {

// What generate() of transformers starts from.
std::string GenerationConfigJson(const ModelConfig& config) {
  Json root = {{"_from_model_config", true}};
  if (config.bos_id.has_value()) root["bos_token_id"] = *config.bos_id;
  if (config.eos_id.has_value()) {
    std::vector<int64_t> ends = {*config.eos_id};
    ends.insert(ends.end(), config.more_eos_ids.begin(), config.more_eos_ids.end());
    root["eos_token_id"] = ends.size() == 1 ? Json(ends.front()) : Json(ends);
  }
  if (config.pad_id.has_value()) root["pad_token_id"] = *config.pad_id;
  return root.dump(2) + "\n";
}

// The tensors are exactly the config's parameters, in any order.
absl::Status CheckTensors(const ModelConfig& config, const std::vector<TensorToWrite>& tensors) {
  absl::flat_hash_map<std::string, const TensorToWrite*> given;
  for (const TensorToWrite& tensor : tensors) {
    if (!given.emplace(tensor.name, &tensor).second) {
      return absl::InvalidArgumentError(absl::StrCat("tensor \"", tensor.name, "\" given twice"));
    }
  }
  for (const ModelConfig::Parameter& parameter : config.Parameters()) {
    const auto found = given.find(parameter.name);
    if (found == given.end() || found->second->shape != parameter.shape) {
      return absl::InvalidArgumentError(absl::StrCat("tensor \"", parameter.name,
                                                     "\" is missing or has not the shape ",
                                                     ShapeText(parameter.shape), " of the config"));
    }
    given.erase(found);
  }
  if (!given.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor \"", given.begin()->first, "\" is no parameter of the config"));
  }
  return absl::OkStatus();
}

absl::Status WriteTensors(const std::string& path, const std::vector<TensorToWrite>& tensors) {
  std::vector<SafetensorsTensor> header;
  for (const TensorToWrite& tensor : tensors) {
    header.push_back({tensor.name, tensor.dtype, tensor.shape});
  }
  SH_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsWriter> writer,
                      SafetensorsWriter::Create(path, std::move(header)));
  std::vector<float> values;
  for (const TensorToWrite& tensor : tensors) {
    int64_t count = 1;
    for (const int64_t dimension : tensor.shape) count *= dimension;
    values.resize(static_cast<size_t>(count));
    SH_RETURN_IF_ERROR_AT(tensor.read(absl::MakeSpan(values)), tensor.name);
    SH_RETURN_IF_ERROR(writer->AppendF32(values, tensor.dtype));
  }
  return writer->Close();
}

absl::Status FillFolder(const std::string& folder, const ModelConfig& config,
                        const Tokenizer& tokenizer, const std::vector<TensorToWrite>& tensors) {
  SH_RETURN_IF_ERROR(WriteFileAtomically(JoinPath(folder, "config.json"), ConfigToJson(config)));
  SH_RETURN_IF_ERROR(WriteFileAtomically(JoinPath(folder, "generation_config.json"),
                                         GenerationConfigJson(config)));
  SH_RETURN_IF_ERROR(tokenizer.WriteFiles(folder));
  SH_RETURN_IF_ERROR(WriteTensors(JoinPath(folder, "model.safetensors"), tensors));
  return FsyncFolder(folder);
}

}  // namespace

absl::Status WriteHuggingFaceFolder(const std::string& target, const ModelConfig& config,
                                    const Tokenizer& tokenizer,
                                    const std::vector<TensorToWrite>& tensors) {
  std::string folder = target;
  while (folder.size() > 1 && folder.back() == '/') folder.pop_back();
  SH_RETURN_IF_ERROR(config.Validate());
  SH_RETURN_IF_ERROR(CheckTensors(config, tensors));
  if (PathExists(folder)) {
    return absl::AlreadyExistsError(absl::StrCat(folder, " is there already"));
  }
  const std::string parent = FolderOf(folder);
  SH_RETURN_IF_ERROR(MakeFolders(parent));
  std::string partial = absl::StrCat(folder, ".tmp.XXXXXX");
  if (::mkdtemp(partial.data()) == nullptr) return ErrnoStatus("making a folder beside", folder);
  absl::Status status = FillFolder(partial, config, tokenizer, tensors);
  if (status.ok() && ::chmod(partial.c_str(), 0755) != 0) status = ErrnoStatus("opening", partial);
  // RENAME_NOREPLACE would say the same of an empty folder, which a plain rename replaces.
  if (status.ok() &&
      ::renameat2(AT_FDCWD, partial.c_str(), AT_FDCWD, folder.c_str(), RENAME_NOREPLACE) != 0) {
    status = ErrnoStatus("renaming the finished export to", folder);
  }
  if (!status.ok()) {
    RemoveTree(partial).IgnoreError();
    return Annotate(status, absl::StrCat("exporting to ", folder));
  }
  return FsyncFolder(parent);
}

}  // namespace stillhouse

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_format.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/json.h"
#include "formats/load_tensors.h"
#include "formats/model_files.h"
#include "formats/safetensors.h"
#include "formats/safetensors_model.h"

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
    if (found != given.end() && FloatBytes(found->second->dtype) == 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tensor \"", parameter.name, "\": cannot write dtype ", found->second->dtype));
    }
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

size_t BytesOf(const TensorToWrite& tensor) {
  size_t bytes = FloatBytes(tensor.dtype);
  for (const int64_t dimension : tensor.shape) bytes *= static_cast<size_t>(dimension);
  return bytes;
}

absl::Status WriteTensor(const TensorToWrite& tensor, SafetensorsWriter& writer) {
  const size_t bytes = BytesOf(tensor);
  if (tensor.read_rows == nullptr) {
    std::vector<float> values(bytes / FloatBytes(tensor.dtype));
    SH_RETURN_IF_ERROR_AT(tensor.read(absl::MakeSpan(values)), tensor.name);
    return Annotate(writer.AppendF32(values, tensor.dtype), tensor.name);
  }
  const TensorInfo info = {tensor.name, tensor.dtype, tensor.shape};
  const size_t row = bytes / static_cast<size_t>(info.Rows());
  std::string buffer;
  for (const RowBlock& block : RowBlocksOf({&info})) {
    buffer.resize(static_cast<size_t>(block.rows) * row);
    SH_RETURN_IF_ERROR(tensor.read_rows(block.first, absl::MakeSpan(buffer)));
    SH_RETURN_IF_ERROR(writer.Append(buffer));
  }
  return absl::OkStatus();
}

absl::Status WriteShard(const std::string& path, absl::Span<const TensorToWrite* const> tensors) {
  std::vector<SafetensorsTensor> header;
  for (const TensorToWrite* tensor : tensors) {
    header.push_back({tensor->name, tensor->dtype, tensor->shape});
  }
  SH_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsWriter> writer,
                      SafetensorsWriter::Create(path, std::move(header)));
  for (const TensorToWrite* tensor : tensors) SH_RETURN_IF_ERROR(WriteTensor(*tensor, *writer));
  return writer->Close();
}

// One file, or several and their index, cut where the next tensor would make one too large: as
// transformers cuts and names them.
absl::Status WriteTensors(const std::string& folder, const std::vector<TensorToWrite>& tensors,
                          const WriteFolderOptions& options) {
  std::vector<std::vector<const TensorToWrite*>> shards(1);
  uint64_t size = 0, total = 0, parameters = 0;
  for (const TensorToWrite& tensor : tensors) {
    const uint64_t bytes = BytesOf(tensor);
    if (!shards.back().empty() && size + bytes > options.shard_bytes_max) {
      shards.emplace_back();
      size = 0;
    }
    shards.back().push_back(&tensor);
    size += bytes;
    total += bytes;
    parameters += bytes / FloatBytes(tensor.dtype);
  }
  if (shards.size() == 1) return WriteShard(JoinPath(folder, kSafetensorsSingleFile), shards[0]);
  Json map = Json::object();
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name =
        absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, shards.size());
    for (const TensorToWrite* tensor : shards[i]) map[tensor->name] = name;
    SH_RETURN_IF_ERROR(WriteShard(JoinPath(folder, name), shards[i]));
  }
  const Json index = {{"metadata", {{"total_parameters", parameters}, {"total_size", total}}},
                      {"weight_map", std::move(map)}};
  return WriteFileAtomically(JoinPath(folder, kSafetensorsIndexFile), index.dump(2) + "\n");
}

absl::Status FillFolder(const std::string& folder, const ModelConfig& config,
                        const Tokenizer& tokenizer, const std::vector<TensorToWrite>& tensors,
                        const WriteFolderOptions& options) {
  SH_RETURN_IF_ERROR(WriteFileAtomically(JoinPath(folder, "config.json"), ConfigToJson(config)));
  SH_RETURN_IF_ERROR(WriteFileAtomically(JoinPath(folder, "generation_config.json"),
                                         GenerationConfigJson(config)));
  SH_RETURN_IF_ERROR(tokenizer.WriteFiles(folder));
  SH_RETURN_IF_ERROR(WriteTensors(folder, tensors, options));
  return FsyncFolder(folder);
}

}  // namespace

absl::StatusOr<std::vector<TensorToWrite>> TensorsToWrite(std::shared_ptr<const Weights> weights,
                                                          const std::string& dtype) {
  std::vector<TensorToWrite> tensors;
  for (const TensorInfo& info : weights->tensors()) {
    const std::string& target = dtype.empty() ? info.stored_dtype : dtype;
    if (FloatBytes(target) == 0) {
      return absl::UnimplementedError(absl::StrCat("tensor \"", info.name, "\" is stored as ",
                                                   target, ": take a dtype of F32, BF16 or F16"));
    }
    const auto read_rows = [weights, &info, target](int64_t first, absl::Span<char> out) {
      std::vector<float> scratch;
      const auto row = static_cast<size_t>(info.Count() / info.Rows()) * FloatBytes(target);
      absl::Status status = ReadRowsAs(*weights, info.name, first, target, scratch, out);
      if (status.ok() && target != info.stored_dtype && FloatBytes(target) == 2) {
        status = Annotate(CheckFinite(out, target), info.name);
      }
      GiveBackRows(*weights, info, {0, first, static_cast<int64_t>(out.size() / row)});
      return status;
    };
    tensors.push_back({info.name, info.shape, target, nullptr, read_rows});
  }
  return tensors;
}

absl::Status WriteHuggingFaceFolder(const std::string& target, const ModelConfig& config,
                                    const Tokenizer& tokenizer,
                                    const std::vector<TensorToWrite>& tensors,
                                    const WriteFolderOptions& options) {
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
  absl::Status status = FillFolder(partial, config, tokenizer, tensors, options);
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

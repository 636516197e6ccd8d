#include "formats/safetensors_model.h"

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/json.h"
#include "formats/safetensors.h"

namespace stillhouse {
namespace {

constexpr uint64_t kIndexBytesMax = 64 << 20;
constexpr size_t kShardsMax = 4096;

// In the order of the config's parameters.
class SafetensorsWeights final : public Weights {
 public:
  void Add(TensorInfo info, std::shared_ptr<const SafetensorsFile> file,
           const SafetensorsTensor& tensor) {
    index_[info.name] = infos_.size();
    infos_.push_back(std::move(info));
    stored_.push_back({std::move(file), &tensor});
  }
  void AddFile(std::shared_ptr<const SafetensorsFile> file) { files_.push_back(std::move(file)); }

  const std::vector<TensorInfo>& tensors() const override { return infos_; }
  const TensorInfo* Find(absl::string_view name) const override {
    const auto found = index_.find(name);
    return found == index_.end() ? nullptr : &infos_[found->second];
  }
  absl::Status ReadRowsF32(absl::string_view name, int64_t first,
                           absl::Span<float> out) const override {
    SH_ASSIGN_OR_RETURN(const Stored* stored, Get(name));
    const size_t element = SafetensorsDtypeSize(stored->tensor->dtype);
    SH_ASSIGN_OR_RETURN(const absl::string_view bytes, Rows(name, first, out.size() * element));
    return stored->file->DecodeF32(*stored->tensor, bytes, out);
  }
  absl::Status CopyRows(absl::string_view name, int64_t first,
                        absl::Span<char> out) const override {
    SH_ASSIGN_OR_RETURN(const Stored* stored, Get(name));
    SH_ASSIGN_OR_RETURN(const absl::string_view bytes, Rows(name, first, out.size()));
    return stored->file->Copy(bytes, out);
  }
  absl::StatusOr<absl::string_view> RawBytes(absl::string_view name) const override {
    SH_ASSIGN_OR_RETURN(const Stored* stored, Get(name));
    return stored->file->Bytes(*stored->tensor);
  }
  void GiveBack(absl::string_view bytes) const override {
    for (const auto& file : files_) file->GiveBack(bytes);
  }
  std::vector<FileIdentity> files() const override {
    std::vector<FileIdentity> all;
    for (const auto& file : files_) all.push_back(file->identity());
    return all;
  }

 private:
  struct Stored {
    std::shared_ptr<const SafetensorsFile> file;
    const SafetensorsTensor* tensor;
  };
  absl::StatusOr<const Stored*> Get(absl::string_view name) const {
    const auto found = index_.find(name);
    if (found != index_.end()) return &stored_[found->second];
    return absl::NotFoundError(absl::StrCat("no tensor \"", name, "\""));
  }
  // `size` bytes from the row `first` on.
  absl::StatusOr<absl::string_view> Rows(absl::string_view name, int64_t first, size_t size) const {
    SH_ASSIGN_OR_RETURN(const absl::string_view bytes, RawBytes(name));
    const size_t row = bytes.size() / static_cast<size_t>(Find(name)->Rows());
    const size_t begin = static_cast<size_t>(first) * row;
    SH_CHECK(first >= 0 && size % row == 0 && begin + size <= bytes.size(), name);
    return bytes.substr(begin, size);
  }

  std::vector<TensorInfo> infos_;
  std::vector<Stored> stored_;
  std::vector<std::shared_ptr<const SafetensorsFile>> files_;
  absl::flat_hash_map<std::string, size_t> index_;
};

// From tensor to the name of its file; empty where a single file holds them all.
using IndexMap = std::map<std::string, std::string>;

absl::StatusOr<IndexMap> ReadIndex(const std::string& path) {
  SH_ASSIGN_OR_RETURN(const Json index, ReadJsonFile(path, kIndexBytesMax));
  const Json* map = JsonFields(index, path).Find("weight_map");
  if (map == nullptr || !map->is_object() || map->empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": `weight_map` is missing, empty or no object"));
  }
  IndexMap files;
  for (const auto& [tensor, file] : map->items()) {
    const std::string name = file.is_string() ? file.get<std::string>() : "";
    if (name.find('/') != std::string::npos || name.find('\0') != std::string::npos ||
        !absl::EndsWith(name, ".safetensors")) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": \"", tensor.substr(0, 80),
                       "\" must lie in a .safetensors file of the same folder"));
    }
    files[tensor] = name;
  }
  return files;
}

struct Shards {
  std::vector<std::shared_ptr<const SafetensorsFile>> files;
  IndexMap index;
  std::string index_path;
};

absl::StatusOr<Shards> OpenShards(const std::string& folder) {
  Shards shards;
  shards.index_path = JoinPath(folder, kSafetensorsIndexFile);
  const std::string single = JoinPath(folder, kSafetensorsSingleFile);
  if (PathExists(single) || !PathExists(shards.index_path)) {
    SH_ASSIGN_OR_RETURN(auto file, SafetensorsFile::Open(single));
    shards.files.push_back(std::move(file));
    return shards;
  }
  SH_ASSIGN_OR_RETURN(shards.index, ReadIndex(shards.index_path));
  std::vector<std::string> names;
  for (const auto& [tensor, file] : shards.index) names.push_back(file);
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  if (names.size() > kShardsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat(shards.index_path, ": more than ", kShardsMax, " files"));
  }
  for (const std::string& name : names) {
    auto shard = SafetensorsFile::Open(JoinPath(folder, name));
    if (absl::IsNotFound(shard.status())) {
      return absl::NotFoundError(absl::StrCat(JoinPath(folder, name), ": is missing; ",
                                              kSafetensorsIndexFile, " names it as one of ",
                                              names.size(), " files"));
    }
    SH_RETURN_IF_ERROR(shard.status());
    shards.files.push_back(*std::move(shard));
  }
  return shards;
}

// Tensors that checkpoints hold besides their parameters and that change nothing: the rotary tables
// of old Llamas, and the head of a tied model, which transformers ties over it.
bool MayBeIgnored(absl::string_view name, const ModelConfig& config) {
  return absl::EndsWith(name, ".rotary_emb.inv_freq") ||
         (config.tie_embeddings && name == "lm_head.weight");
}

using TensorMap = absl::flat_hash_map<std::string, std::shared_ptr<const SafetensorsFile>>;

// Each tensor's file, where the index, if there is one, agrees.
absl::StatusOr<TensorMap> FindTensors(const Shards& shards) {
  TensorMap where;
  for (const auto& shard : shards.files) {
    for (const SafetensorsTensor& tensor : shard->tensors()) {
      if (!where.emplace(tensor.name, shard).second) {
        return absl::InvalidArgumentError(absl::StrCat(shard->path(), ": tensor \"",
                                                       tensor.name.substr(0, 80),
                                                       "\" is in another file of the folder too"));
      }
    }
  }
  if (shards.index.empty()) return where;
  for (const auto& [tensor, shard] : where) {
    const auto named = shards.index.find(tensor);
    if (named != shards.index.end() && named->second == BaseName(shard->path())) continue;
    const std::string there =
        named == shards.index.end() ? "in no file" : absl::StrCat("in ", named->second);
    return absl::InvalidArgumentError(absl::StrCat(shard->path(), ": has tensor \"",
                                                   tensor.substr(0, 80), "\", which ",
                                                   kSafetensorsIndexFile, " puts ", there));
  }
  for (const auto& [tensor, file] : shards.index) {
    if (where.contains(tensor)) continue;
    return absl::InvalidArgumentError(absl::StrCat(shards.index_path, ": puts tensor \"",
                                                   tensor.substr(0, 80), "\" in ", file,
                                                   ", which does not have it"));
  }
  return where;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Weights>> OpenFolderWeights(const std::string& folder,
                                                                 const ModelConfig& config) {
  SH_ASSIGN_OR_RETURN(const Shards shards, OpenShards(folder));
  SH_ASSIGN_OR_RETURN(TensorMap where, FindTensors(shards));
  auto weights = std::make_shared<SafetensorsWeights>();
  for (const auto& shard : shards.files) weights->AddFile(shard);
  for (const ModelConfig::Parameter& parameter : config.Parameters()) {
    const auto found = where.find(parameter.name);
    if (found == where.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat(folder, ": tensor \"", parameter.name, "\" is missing"));
    }
    const SafetensorsTensor* tensor = found->second->Find(parameter.name);
    if (tensor->shape != parameter.shape) {
      return absl::InvalidArgumentError(absl::StrCat(
          found->second->path(), ": tensor \"", parameter.name, "\" has the shape ",
          ShapeText(tensor->shape), ", config.json wants ", ShapeText(parameter.shape)));
    }
    if (FloatBytes(tensor->dtype) == 0 && tensor->dtype != "F64") {
      return absl::UnimplementedError(
          absl::StrCat(found->second->path(), ": tensor \"", parameter.name, "\" has dtype ",
                       tensor->dtype, ", only F64, F32, F16 and BF16 are implemented"));
    }
    weights->Add({parameter.name, tensor->dtype, parameter.shape}, found->second, *tensor);
    where.erase(found);
  }
  for (const auto& [name, shard] : where) {
    if (MayBeIgnored(name, config)) continue;
    return absl::UnimplementedError(absl::StrCat(
        shard->path(), ": tensor \"", name.substr(0, 80), "\" is not part of a ",
        config.architecture, " model as its config describes it; what it does is not implemented"));
  }
  return std::shared_ptr<const Weights>(std::move(weights));
}

}  // namespace stillhouse

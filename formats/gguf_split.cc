// Models split into several GGUF files, as llama.cpp's gguf-split and converter write them: every
// part says which it is and how many there are, the first has the metadata, each has its tensors.
#include <map>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "common/status.h"
#include "formats/gguf.h"

namespace stillhouse {
namespace {

constexpr absl::string_view kCountKey = "split.count";
constexpr absl::string_view kNumberKey = "split.no";  // from 0
constexpr absl::string_view kTensorsKey = "split.tensors.count";
constexpr char kArchitectureKey[] = "general.architecture";

// "folder/NAME" and the two numbers of "folder/NAME-00001-of-00003.gguf".
struct PartName {
  std::string stem;
  int64_t number = 0;  // from 1
  int64_t count = 0;

  std::string Path(int64_t part) const {
    return absl::StrFormat("%s-%05d-of-%05d.gguf", stem, part, count);
  }
};

bool ParseNumber(absl::string_view digits, int64_t* number) {
  for (const char c : digits) {
    if (!absl::ascii_isdigit(static_cast<unsigned char>(c))) return false;
  }
  return absl::SimpleAtoi(digits, number);
}

std::optional<PartName> ParsePartName(absl::string_view path) {
  constexpr absl::string_view kForm = "-00001-of-00003.gguf";
  if (path.size() <= kForm.size()) return std::nullopt;
  const absl::string_view tail = path.substr(path.size() - kForm.size());
  PartName name;
  name.stem = std::string(path.substr(0, path.size() - kForm.size()));
  const bool fits = tail[0] == '-' && tail.substr(6, 4) == "-of-" && tail.substr(15) == ".gguf" &&
                    ParseNumber(tail.substr(1, 5), &name.number) &&
                    ParseNumber(tail.substr(10, 5), &name.count);
  return fits ? std::optional<PartName>(std::move(name)) : std::nullopt;
}

// What a part says of the whole.
struct Split {
  int64_t number = 0;  // from 0
  int64_t count = 1;
  int64_t tensors = 0;

  static absl::StatusOr<Split> Of(const GgufFile& file) {
    Split split;
    const std::pair<absl::string_view, int64_t*> keys[] = {
        {kCountKey, &split.count}, {kNumberKey, &split.number}, {kTensorsKey, &split.tensors}};
    for (const auto& [key, target] : keys) {
      SH_ASSIGN_OR_RETURN_AT(const std::optional<int64_t> value, file.Int(key), file.path());
      if (!value.has_value()) {
        return absl::InvalidArgumentError(
            absl::StrCat(file.path(), ": metadata key \"", key,
                         "\" is missing, it is no part of a split model"));
      }
      *target = *value;
    }
    return split;
  }
};

// The part that stands at `number` (from 1) of the model that `name` and `whole` describe.
absl::StatusOr<std::shared_ptr<const GgufFile>> OpenPart(const PartName& name, int64_t number,
                                                         const Split& whole) {
  const std::string path = name.Path(number);
  auto part = GgufFile::Open(path);
  if (absl::IsNotFound(part.status())) {
    return absl::NotFoundError(
        absl::StrCat(path, ": part ", number, " of ", name.count, " of the model is missing"));
  }
  SH_RETURN_IF_ERROR(part.status());
  SH_ASSIGN_OR_RETURN(const Split split, Split::Of(**part));
  if (split.number == number - 1 && split.count == whole.count && split.tensors == whole.tensors) {
    return part;
  }
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": says that it is part ", split.number + 1, " of ", split.count, ", of ",
                   split.tensors, " tensors, where part ", number, " of ", whole.count, ", of ",
                   whole.tensors, " tensors, belongs: a part of another model, or renamed"));
}

}  // namespace

absl::Status GgufFile::Join(std::vector<std::shared_ptr<const GgufFile>> others, int64_t tensors) {
  SH_ASSIGN_OR_RETURN_AT(const auto architecture, String(kArchitectureKey), path());
  for (const std::shared_ptr<const GgufFile>& other : others) {
    SH_ASSIGN_OR_RETURN_AT(const auto its, other->String(kArchitectureKey), other->path());
    if (its.has_value() && its != architecture) {
      return absl::InvalidArgumentError(absl::StrCat(other->path(), ": has another ",
                                                     kArchitectureKey, " than ", path(),
                                                     ": a part of another model"));
    }
    for (const GgufTensor& tensor : other->tensors()) {
      if (!tensor_index_.emplace(tensor.name, tensors_.size()).second) {
        return absl::InvalidArgumentError(absl::StrCat(
            other->path(), ": tensor \"", tensor.name.substr(0, 80),
            "\" is in an earlier part too: a part of another model, or the same part twice"));
      }
      tensors_.push_back(tensor);
    }
  }
  others_ = std::move(others);
  if (static_cast<int64_t>(tensors_.size()) == tensors) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(path(), ": its ", others_.size() + 1,
                                                 " parts hold ", tensors_.size(), " tensors, ",
                                                 kTensorsKey, " says ", tensors));
}

absl::StatusOr<std::shared_ptr<const GgufFile>> GgufFile::OpenWhole(const std::string& path) {
  SH_ASSIGN_OR_RETURN(std::shared_ptr<const GgufFile> given, Open(path));
  SH_ASSIGN_OR_RETURN_AT(const std::optional<int64_t> count, given->Int(kCountKey), path);
  if (count.value_or(1) == 1) return given;
  SH_ASSIGN_OR_RETURN(const Split split, Split::Of(*given));
  if (split.count < 1 || split.count > kGgufPartsMax) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", kCountKey, " is ", split.count,
                                                   "; 1 to ", kGgufPartsMax, " are possible"));
  }
  const std::optional<PartName> name = ParsePartName(path);
  if (!name.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": is one of ", split.count, " parts of a model; to find the others, its name must ",
        absl::StrFormat("end in -%05d-of-%05d.gguf", split.number + 1, split.count)));
  }
  if (name->count != split.count || name->number != split.number + 1) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": is called part ", name->number, " of ",
                                                   name->count, " and says that it is part ",
                                                   split.number + 1, " of ", split.count));
  }
  std::vector<std::shared_ptr<const GgufFile>> others;
  for (int64_t number = 2; number <= split.count; ++number) {
    SH_ASSIGN_OR_RETURN(auto part, OpenPart(*name, number, split));
    others.push_back(std::move(part));
  }
  SH_ASSIGN_OR_RETURN(const auto first, OpenPart(*name, 1, split));
  std::shared_ptr<GgufFile> whole(new GgufFile(*first));
  SH_RETURN_IF_ERROR(whole->Join(std::move(others), split.tensors));
  return std::shared_ptr<const GgufFile>(std::move(whole));
}

absl::StatusOr<std::string> FindSplitGguf(const std::string& folder) {
  SH_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(folder));
  std::map<std::string, std::string> models;  // from a split model's name to its first part
  for (const std::string& file : names) {
    const std::optional<PartName> name = ParsePartName(file);
    if (!name.has_value() || name->count < 2) continue;
    models[absl::StrCat(name->stem, " (", name->count, " parts)")] = name->Path(1);
  }
  if (models.empty()) return std::string();
  if (models.size() == 1) return JoinPath(folder, models.begin()->second);
  return absl::InvalidArgumentError(
      absl::StrCat(folder, ": holds parts of several models, ", models.begin()->first, " and ",
                   std::next(models.begin())->first, "; give one part of the one that is meant"));
}

}  // namespace stillhouse

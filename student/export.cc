#include "student/export.h"

#include <algorithm>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "common/digest.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/json.h"

namespace stillhouse {
namespace {

constexpr uint64_t kRecordBytesMax = 1 << 16;

// What an earlier start of this run set out to write: the name of a folder of the output, and its
// files, once they were all there.
struct Record {
  std::string name;  // "": nothing
  Json files;
};
absl::StatusOr<Record> ReadRecord(const std::string& path) {
  if (!PathExists(path)) return Record();
  SH_ASSIGN_OR_RETURN(const Json json, ReadJsonFile(path, kRecordBytesMax));
  const JsonFields fields(json, path);
  Record record;
  SH_ASSIGN_OR_RETURN(record.name, fields.RequiredString("folder"));
  record.name = BaseName(record.name);
  if (record.name.empty() || record.name == "." || record.name == "..") {
    return absl::DataLossError(absl::StrCat(path, ": damaged: `folder` names no folder"));
  }
  if (const Json* files = fields.Find("files"); files != nullptr) record.files = *files;
  return record;
}

absl::Status WriteRecord(const std::string& path, const std::string& name, const Json& files) {
  OrderedJson json;
  json["folder"] = name;
  if (!files.is_null()) json["files"] = files;
  return WriteFileAtomically(path, json.dump() + "\n");
}

absl::StatusOr<Json> FileRecord(const std::string& folder, const std::string& name) {
  SH_ASSIGN_OR_RETURN(const auto map, MappedFile::Open(JoinPath(folder, name)));
  return Json{
      {"name", name}, {"bytes", map->bytes().size()}, {"sha256", Sha256Of(map->bytes()).Hex()}};
}

absl::StatusOr<Json> FilesOf(const std::string& folder) {
  Json files = Json::array();
  SH_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(folder));
  for (const std::string& name : names) {
    SH_ASSIGN_OR_RETURN(Json file, FileRecord(folder, name));
    files.push_back(std::move(file));
  }
  return files;
}

// True when every file is as it was recorded. AlreadyExists when one is not, and there are others
// beside them that are not ours to remove.
absl::StatusOr<bool> IsWhole(const std::string& folder, const Json& recorded) {
  SH_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(folder));
  std::set<std::string> others(names.begin(), names.end());
  bool whole = recorded.is_array();
  for (const Json& file : recorded) {
    const bool named = file.is_object() && file.contains("name") && file["name"].is_string();
    const std::string name = named ? BaseName(file["name"].get<std::string>()) : "";
    const absl::StatusOr<Json> found = FileRecord(folder, name);
    whole &= found.ok() && *found == file;
    others.erase(name);
  }
  if (whole || others.empty()) return whole;
  return absl::AlreadyExistsError(
      absl::StrCat(folder, ": damaged, and has files that are not of the export (", *others.begin(),
                   "): move it away"));
}

// Whether another run of this output has set out to write a folder of that name.
bool IsAnothers(const std::string& run_folder, const std::string& name) {
  const std::string runs = FolderOf(run_folder);
  const absl::StatusOr<std::vector<std::string>> folders = ListFolder(runs);
  if (!folders.ok()) return false;
  return std::any_of(folders->begin(), folders->end(), [&](const std::string& folder) {
    if (folder == BaseName(run_folder)) return false;
    const auto record = ReadRecord(JoinPath(runs, absl::StrCat(folder, "/export.json")));
    return record.ok() && record->name == name;
  });
}

}  // namespace

absl::StatusOr<std::string> ExportStudent(const RunContext& context, StudentState& state) {
  const std::string path = JoinPath(context.spec.run_folder, "export.json");
  const std::string& output = context.recipe.output;
  SH_ASSIGN_OR_RETURN(Record record, ReadRecord(path));
  if (record.files.is_null() && IsAnothers(context.spec.run_folder, record.name)) record.name = "";
  if (record.name.empty()) {
    record.name = context.student.name;
    if (PathExists(JoinPath(output, record.name))) {
      absl::StrAppend(&record.name, "-", context.run_hash.ShortHex());
    }
    if (PathExists(JoinPath(output, record.name))) {
      return absl::AlreadyExistsError(absl::StrCat(
          JoinPath(output, record.name), ": is there, and not of this run: move it away"));
    }
    SH_RETURN_IF_ERROR(WriteRecord(path, record.name, nullptr));
  }
  const std::string folder = JoinPath(output, record.name);
  if (!record.files.is_null() && PathExists(folder)) {
    SH_ASSIGN_OR_RETURN(const bool whole, IsWhole(folder, record.files));
    if (whole) return folder;
    SH_RETURN_IF_ERROR(RemoveTree(folder));
  }
  if (!PathExists(folder)) {
    SH_RETURN_IF_ERROR(MakeFolders(output));
    SH_RETURN_IF_ERROR_AT(
        WriteHuggingFaceFolder(folder, context.shape.config, *context.teacher.tokenizer,
                               TensorsOf(context.shape.config, state)),
        "exporting");
  }
  SH_ASSIGN_OR_RETURN(const Json files, FilesOf(folder));
  SH_RETURN_IF_ERROR(WriteRecord(path, record.name, files));
  return folder;
}

}  // namespace stillhouse

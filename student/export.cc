#include "student/export.h"

#include "common/file.h"
#include "common/status.h"
#include "formats/json.h"

namespace stillhouse {
namespace {

constexpr uint64_t kRecordBytesMax = 1 << 16;

// The folder that an earlier start of this run set out to write; "" if none did.
absl::StatusOr<std::string> RecordedFolder(const std::string& path) {
  if (!PathExists(path)) return std::string();
  SH_ASSIGN_OR_RETURN(const Json json, ReadJsonFile(path, kRecordBytesMax));
  return JsonFields(json, path).RequiredString("folder");
}

}  // namespace

absl::StatusOr<std::string> ExportStudent(const RunContext& context, const StudentState& state) {
  const std::string record = JoinPath(context.spec.run_folder, "export.json");
  SH_ASSIGN_OR_RETURN(std::string folder, RecordedFolder(record));
  if (!folder.empty() && PathExists(folder)) return folder;
  if (folder.empty()) {
    folder = JoinPath(context.recipe.output, context.student.name);
    if (PathExists(folder)) folder += absl::StrCat("-", context.run_hash.ShortHex());
    if (PathExists(folder)) {
      return absl::AlreadyExistsError(
          absl::StrCat(folder, ": is there, and not of this run: move it away"));
    }
    OrderedJson json;
    json["folder"] = folder;
    SH_RETURN_IF_ERROR(WriteFileAtomically(record, json.dump() + "\n"));
  }
  SH_RETURN_IF_ERROR(MakeFolders(context.recipe.output));
  const std::string dtype = state.weights.size() > 0 ? "BF16" : "F32";
  SH_RETURN_IF_ERROR_AT(
      WriteHuggingFaceFolder(folder, context.shape.config, *context.teacher.tokenizer,
                             TensorsOf(context.shape.config, state, dtype)),
      "exporting");
  return folder;
}

}  // namespace stillhouse

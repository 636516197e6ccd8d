#include "coordinator/ctl/exports.h"

#include <sys/stat.h>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "common/file.h"

namespace stillhouse {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kRecordBytesMax = 1 << 20;

// "" or what is wrong with one file of an export.
std::string FileProblem(const std::string& folder, const Json& file) {
  if (!file.is_object() || !file.contains("name") || !file["name"].is_string() ||
      !file.contains("bytes") || !file["bytes"].is_number_unsigned()) {
    return "";
  }
  const std::string name = BaseName(file["name"].get<std::string>());
  const uint64_t bytes = file["bytes"].get<uint64_t>();
  struct stat info {};
  if (stat(JoinPath(folder, name).c_str(), &info) != 0 || !S_ISREG(info.st_mode)) {
    return absl::StrCat("lacks its ", name);
  }
  if (static_cast<uint64_t>(info.st_size) == bytes) return "";
  return absl::StrCat("has a ", name, " of ", info.st_size, " bytes, and ", bytes, " were written");
}

// "" or what is wrong with the export of a finished run.
std::string ExportProblem(const RunView& run) {
  if (!PathExists(run.exported_to)) return "is not there any more";
  const absl::StatusOr<std::string> text =
      ReadFile(JoinPath(run.folder, "export.json"), kRecordBytesMax);
  if (!text.ok()) return "";  // of an earlier version, or removed: nothing to compare with
  const Json record = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!record.is_object() || !record.contains("files") || !record["files"].is_array()) return "";
  for (const Json& file : record["files"]) {
    const std::string problem = FileProblem(run.exported_to, file);
    if (!problem.empty()) return problem;
  }
  return "";
}

}  // namespace

std::vector<std::string> CheckExports(const std::string& output, AdminView* view) {
  std::vector<std::string> problems;
  for (RunView& run : view->runs) {
    const std::string folder = JoinPath(output, absl::StrCat(".runs/", BaseName(run.folder)));
    if (!output.empty() && PathExists(folder)) {
      run.folder = folder;
      if (!run.exported_to.empty()) run.exported_to = JoinPath(output, BaseName(run.exported_to));
    }
    if (run.state != "finished" || run.exported_to.empty()) continue;
    const std::string problem = ExportProblem(run);
    if (problem.empty()) continue;
    const std::string where = FolderOf(run.exported_to);
    run.last.message = absl::StrCat("its export ", run.exported_to, " ", problem, ": remove ",
                                    JoinPath(where, ".stillhouse"), " to train the students of ",
                                    where, " again, from the cache");
    problems.push_back(absl::StrCat(run.name, ": ", run.last.message));
    if (!PathExists(run.exported_to)) run.exported_to.clear();
  }
  return problems;
}

}  // namespace stillhouse

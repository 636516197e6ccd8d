#include "storage/cache_quarantine.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <set>
#include <vector>

#include "absl/strings/match.h"
#include "common/file.h"
#include "common/log.h"
#include "common/status.h"
#include "storage/rocks_tables.h"

namespace stillhouse {
namespace {

enum class Worth { kNothing, kSomething, kUnknown };

class Tidier {
 public:
  Tidier(TeacherCache& sections, ObjectStore& objects) : sections_(sections), objects_(objects) {}

  absl::Status Folder(const std::string& folder) {
    SH_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(folder));
    std::vector<std::string> tables;
    for (const std::string& name : names) {
      const std::string path = JoinPath(folder, name);
      struct stat info {};
      if (stat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) continue;
      if (!absl::EndsWith(name, ".sst")) {
        unknown_.push_back({info.st_mtim.tv_sec, path});
      } else if (static_cast<uint64_t>(info.st_size) <= budget_) {
        budget_ -= info.st_size;
        tables.push_back(path);
      }
    }
    return Tables(tables);
  }

  // The youngest of the files of which nothing can be told stay.
  void DropUnknown() {
    std::sort(unknown_.begin(), unknown_.end());
    for (size_t i = 0; i + kUnreadableKept < unknown_.size(); ++i) Remove(unknown_[i].path);
  }

 private:
  struct Unknown {
    int64_t seconds;
    std::string path;
    friend auto operator<=>(const Unknown&, const Unknown&) = default;
  };

  absl::Status Tables(const std::vector<std::string>& paths) {
    std::vector<std::string> of_objects;
    bool object_missing = false;
    std::set<uint64_t> told;  // generations whose header lies here
    for (const std::string& path : paths) {
      const TableFile table = CheckTable(path);
      Worth worth = Worth::kNothing;
      if (!table.damage.ok()) {
        worth = Worth::kUnknown;
      } else if (table.family == "data") {
        SH_ASSIGN_OR_RETURN(worth, OfParts(path));
      } else if (table.family == kObjectsFamily) {
        of_objects.push_back(path);
        SH_ASSIGN_OR_RETURN(const bool missing, MissesObject(path, &told));
        object_missing = object_missing || missing;
        continue;
      }
      Settle(path, worth);
    }
    for (const std::string& path : of_objects) {
      Settle(path, object_missing
                       ? Worth::kSomething
                       : (HasOtherPieces(path, told) ? Worth::kUnknown : Worth::kNothing));
    }
    return absl::OkStatus();
  }

  void Settle(const std::string& path, Worth worth) {
    struct stat info {};
    if (worth == Worth::kNothing) {
      Remove(path);
    } else if (worth == Worth::kUnknown && stat(path.c_str(), &info) == 0) {
      unknown_.push_back({info.st_mtim.tv_sec, path});
    }
  }

  absl::StatusOr<Worth> OfParts(const std::string& path) {
    Worth worth = Worth::kNothing;
    SH_RETURN_IF_ERROR(ScanTable(path, [&](absl::string_view, absl::string_view value) {
      const auto record = ParsePartRecord(value);
      if (worth == Worth::kSomething || !record.ok()) return absl::OkStatus();
      SH_ASSIGN_OR_RETURN(const auto found, sections_.Find({record->key}));
      if (!found[0].has_value()) worth = Worth::kSomething;
      return absl::OkStatus();
    }));
    return worth;
  }

  absl::StatusOr<bool> MissesObject(const std::string& path, std::set<uint64_t>* told) {
    bool missing = false;
    SH_RETURN_IF_ERROR(ScanTable(path, [&](absl::string_view key, absl::string_view value) {
      if (!absl::StartsWith(key, "h")) return absl::OkStatus();
      const auto header = ParseObjectHeader(value);
      if (!header.ok()) return absl::OkStatus();
      told->insert(header->generation);
      const absl::Status there = objects_.Stat(key.substr(1)).status();
      if (absl::IsNotFound(there)) missing = true;
      return absl::IsNotFound(there) ? absl::OkStatus() : there;
    }));
    return missing;
  }

  bool HasOtherPieces(const std::string& path, const std::set<uint64_t>& told) {
    bool other = false;
    ScanTable(path, [&](absl::string_view, absl::string_view value) {
      const auto piece = ParsePieceRecord(value);
      if (piece.ok() && !told.contains(piece->generation)) other = true;
      return absl::OkStatus();
    }).IgnoreError();
    return other;
  }

  static void Remove(const std::string& path) {
    if (unlink(path.c_str()) != 0) LogWarning(ErrnoStatus("removing", path).message());
  }

  TeacherCache& sections_;
  ObjectStore& objects_;
  uint64_t budget_ = kTidyBytesMax;
  std::vector<Unknown> unknown_;
};

}  // namespace

absl::Status CheckOwnFolder(const std::string& path) {
  struct stat info {};
  if (lstat(path.c_str(), &info) != 0 || S_ISDIR(info.st_mode)) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(path, " is ", S_ISLNK(info.st_mode) ? "a symbolic link" : "not a folder",
                   "; it must be a folder of the cache's own. Nothing was changed"));
}

absl::Status TidyQuarantine(const std::string& quarantine, TeacherCache& sections,
                            ObjectStore& objects) {
  if (!PathExists(quarantine)) return absl::OkStatus();
  SH_ASSIGN_OR_RETURN(const std::vector<std::string> folders, ListFolder(quarantine));
  Tidier tidier(sections, objects);
  for (const std::string& name : folders) {
    if (!absl::StartsWith(name, "open-")) continue;
    SH_RETURN_IF_ERROR(tidier.Folder(JoinPath(quarantine, name)));
  }
  tidier.DropUnknown();
  for (const std::string& name : folders) {
    // Fails unless it is empty.
    if (absl::StartsWith(name, "open-")) rmdir(JoinPath(quarantine, name).c_str());
  }
  rmdir(quarantine.c_str());
  return absl::OkStatus();
}

}  // namespace stillhouse

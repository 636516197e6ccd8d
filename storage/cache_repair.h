// Repair of a cache directory that does not open, or whose `verify` finds damage.
//
//   <dir>/repairing/    a new database in the making; removed at any later opening
//   <dir>/repaired/     it is whole; the next opening or repair puts it in place
//   <dir>/quarantine/   repair-<n>/: what a repair took out of service; open-<n>/: what openings
//                       found unnamed
//
// Owner: one process, which holds the directory alone (the caller's lock, see CacheDirectory).
// Durability and order: the new database is built beside the old one from links to its whole files,
// synced, and put in its place by two renames; the files that are not part of it stay in
// quarantine/. Killed at any point, the cache is as before or as after, or the next opening
// finishes the renames. Nothing but links is removed.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/digest.h"
#include "storage/object_store.h"

namespace stillhouse {

struct CacheRepairOptions {
  std::string path;
  bool dry_run = false;  // builds, tells, and removes what it built
  int threads = 2;
  std::function<void(const std::string& line)> on_gone;  // one for each thing that is lost
  // What is known of sections by other means than their records; may be empty.
  std::function<std::map<Digest, std::string>(ObjectStore& objects,
                                              const std::set<Digest>& sections)>
      name_sections;
  std::function<void(const std::string& what)> on_progress;  // may be empty
  std::function<void(const char* step)> on_step;             // tests end the process there
};
struct CacheRepairReport {
  bool changed = false;  // false: there was nothing to repair
  uint64_t records = 0;  // in service now
  uint64_t gone = 0;     // parts and objects
  // A table of objects was damaged or gone: jobs, plans and artefacts may be among what is gone,
  // and what only they wanted looks like what nobody wants.
  bool objects_gone = false;
  bool gone_at_least = false;  // more may be: what would tell of it is damaged or gone, too
  uint64_t taken_back = 0;     // parts and objects, from damaged files and from quarantine/
  uint64_t indexed = 0;        // parts whose index entry was missing or wrong
  std::vector<std::string> damaged_files;
  std::string quarantine;  // what this repair took out of service lies there; "" if nothing
};
// FailedPrecondition when another process holds the cache, or what has the name of its database or
// its quarantine is not a folder of its own; NotFound when there is none.
absl::StatusOr<CacheRepairReport> RepairCache(const CacheRepairOptions& options);

// Finishes what an interrupted repair left, and removes what it had only begun. The folder with
// what was taken out of service, or "". REQUIRES: the directory is held alone.
absl::StatusOr<std::string> FinishRepair(const std::string& path);
// Was a repair interrupted between its two renames?
bool NeedsFinishing(const std::string& path);

}  // namespace stillhouse

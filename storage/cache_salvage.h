// Whole records and objects from files that no database serves any more, put back into one.
//
// Owner: a repair, which holds `store` alone. One thread. Durability: what was taken back has been
// written when a method returns, and is synced by the store's Close.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "storage/object_store.h"
#include "storage/teacher_cache.h"

namespace stillhouse {

// Tables that were written by one database and may refer to one another.
struct SalvageSource {
  std::vector<std::string> tables;  // paths
  bool served = false;        // until now: what they alone held is gone if it cannot be taken back
  bool search_bytes = false;  // they are damaged: look for records byte by byte as well
};

class CacheSalvage {
 public:
  // `store` must outlive the result.
  explicit CacheSalvage(KvStore& store) : store_(store) {}

  // Where a part lay that has no record any more: tells its origin, should its record be found.
  void Miss(const PartKey& key, const IndexEntry& entry) { missed_[key] = entry; }
  // Of some part of each section: taken for those whose own origin is gone.
  void Know(std::map<std::string, Provenance> origins) { known_ = std::move(origins); }
  // What named the parts is lost: those of which only the head of a damaged record tells count as
  // missed.
  void CountHeads() { count_heads_ = true; }
  // What can be told of a part by a record that does not hold.
  void Describe(absl::string_view damaged_record, const std::string& place_key);

  // Puts the source's parts that `sections` lacks. Their number.
  absl::StatusOr<uint64_t> TakeParts(const SalvageSource& source, TeacherCache& sections);
  // Puts `items` that `sections` lacks.
  absl::StatusOr<uint64_t> TakeItems(std::vector<PutItem> items, TeacherCache& sections);

  struct Objects {
    uint64_t taken_back = 0;
    std::vector<std::string> gone;  // names
  };
  // Checks every object, puts together what is damaged or missing from `sources`, and drops what
  // cannot be. REQUIRES: no ObjectStore is open for writing.
  absl::StatusOr<Objects> MendObjects(const std::vector<SalvageSource>& sources);

  // Sections of parts that were missed, that `sections` still lacks, and of which nothing is known.
  absl::StatusOr<std::set<Digest>> NotDescribed(TeacherCache& sections);
  void Name(std::map<Digest, std::string> names) { names_ = std::move(names); }
  // Of parts that were missed: one line each for those that `sections` still lacks.
  absl::StatusOr<uint64_t> ListGone(TeacherCache& sections,
                                    const std::function<void(const std::string&)>& line);

 private:
  using Origins = std::map<Place, Provenance>;

  struct Candidate {
    ObjectHeader header;
    const SalvageSource* source;  // none: the store itself
  };
  using Candidates = std::map<std::string, std::vector<Candidate>>;  // by the object's name

  absl::StatusOr<Origins> OriginsOf(const SalvageSource& source);
  // What can be told of missed parts by the heads of their records, which do not hold.
  void DescribeHeads(absl::string_view bytes, const Origins& origins, bool served);
  // A damaged record with this head was met.
  void CountHead(const PartRecord& head);
  absl::Status ForEachGone(
      TeacherCache& sections,
      const std::function<void(const PartKey& key, const IndexEntry& entry)>& visit);
  std::optional<Provenance> OriginFor(const PartRecord& record, std::optional<uint64_t> segment,
                                      const Origins& origins);
  absl::Status FindObjects(const std::vector<SalvageSource>& sources, Candidates* candidates,
                           std::set<std::string>* damaged);
  absl::StatusOr<bool> Mend(const std::string& name, const ObjectHeader& header,
                            const SalvageSource* source);
  absl::StatusOr<std::optional<std::string>> PieceOf(const ObjectHeader& header, uint32_t index,
                                                     const SalvageSource* source);

  KvStore& store_;
  std::map<PartKey, IndexEntry> missed_;
  std::map<PartKey, std::string> described_;
  std::map<Digest, std::string> names_;  // of sections, where described_ tells nothing
  bool count_heads_ = false;
  std::map<std::string, Provenance> known_;  // by canonical spec
  uint64_t next_generation_ = 0;             // 0: not known yet
};

}  // namespace stillhouse

#include "storage/subsumption.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "storage/codec/top_tokens.h"

namespace stillhouse {

bool Serves(const SectionSpec& have, const SectionSpec& want) {
  if (have == want) return true;
  return have.kind == SectionKind::kLogitsTopK && want.kind == SectionKind::kLogitsTopK &&
         have.k >= want.k;
}

absl::StatusOr<std::vector<ServedSection>> ResolveSections(absl::Span<const SectionSpec> stored,
                                                           absl::Span<const SectionSpec> wanted) {
  std::vector<ServedSection> all;
  for (const SectionSpec& want : wanted) {
    const SectionSpec* best = nullptr;
    std::string names;
    for (const SectionSpec& have : stored) {
      absl::StrAppend(&names, names.empty() ? "" : ", ", have.Canonical());
      if (Serves(have, want) && (best == nullptr || have.k < best->k)) best = &have;
    }
    if (best == nullptr) {
      return absl::NotFoundError(absl::StrCat("no section serves ", want.Canonical(),
                                              "; there are: ", names.empty() ? "none" : names));
    }
    all.push_back({want, *best});
  }
  return all;
}

SectionRows AsWanted(const ServedSection& served, SectionRows rows) {
  SH_CHECK(Serves(served.have, served.want), served.have.Canonical(), " does not serve ",
           served.want.Canonical());
  if (served.have == served.want) return rows;
  return KeepTop(std::get<TopTokenRows>(rows), served.want.k);
}

}  // namespace stillhouse

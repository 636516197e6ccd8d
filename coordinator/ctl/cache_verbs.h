// coordinatorctl cache ls | stat | get | digest | du, verify | repair | audit, those of
// cache_transfer_verbs.h, and rm | pin | unpin | gc.
#pragma once

#include "coordinator/ctl/verb.h"

namespace stillhouse {

void AddCacheVerb(CLI::App& app, ChosenVerb& chosen);
// To the verb `cache`: those that free space, in cache_space_verbs.cc.
void AddCacheSpaceVerbs(CLI::App& cache, ChosenVerb& chosen);
// verify and repair, to the app of `cache`.
void AddCacheTrustVerbs(CLI::App& cache, ChosenVerb& chosen);
void AddCacheAuditVerb(CLI::App& cache, ChosenVerb& chosen);

}  // namespace stillhouse

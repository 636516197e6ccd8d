// coordinatorctl cache ls | stat | get | digest | du, verify | repair | audit, those of
// cache_transfer_verbs.h, and rm | pin | unpin | gc.
#pragma once

#include "common/command_line.h"
#include "coordinator/ctl/verb.h"

namespace stillhouse {

void AddCacheVerb(Command app, ChosenVerb& chosen);
// To the verb `cache`: those that free space, in cache_space_verbs.cc.
void AddCacheSpaceVerbs(Command cache, ChosenVerb& chosen);
// verify and repair, to the app of `cache`.
void AddCacheTrustVerbs(Command cache, ChosenVerb& chosen);
void AddCacheAuditVerb(Command cache, ChosenVerb& chosen);

}  // namespace stillhouse

// coordinatorctl cache ls | stat | get | verify | repair | digest | du.
#pragma once

#include "coordinator/ctl/verb.h"

namespace stillhouse {

void AddCacheVerb(CLI::App& app, ChosenVerb& chosen);
// verify and repair, to the app of `cache`.
void AddCacheTrustVerbs(CLI::App& cache, ChosenVerb& chosen);

}  // namespace stillhouse

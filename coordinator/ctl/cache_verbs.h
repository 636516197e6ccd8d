// coordinatorctl cache ls | stat | get | verify | digest | du, and those of cache_transfer_verbs.h.
#pragma once

#include "coordinator/ctl/verb.h"

namespace stillhouse {

void AddCacheVerb(CLI::App& app, ChosenVerb& chosen);

}  // namespace stillhouse

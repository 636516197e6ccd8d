// coordinatorctl cache ls | stat | get | verify | digest | du.
#pragma once

#include "coordinator/ctl/verb.h"

namespace stillhouse {

void AddCacheVerb(CLI::App& app, ChosenVerb& chosen);

}  // namespace stillhouse

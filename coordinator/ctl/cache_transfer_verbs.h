// coordinatorctl cache export | import | convert.
#pragma once

#include "common/command_line.h"
#include "coordinator/ctl/verb.h"

namespace stillhouse {

void AddCacheTransferVerbs(Command cache, ChosenVerb& chosen);

}  // namespace stillhouse

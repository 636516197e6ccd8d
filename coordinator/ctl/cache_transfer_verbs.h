// coordinatorctl cache export | import | convert.
#pragma once

#include "coordinator/ctl/verb.h"

namespace stillhouse {

void AddCacheTransferVerbs(CLI::App& cache, ChosenVerb& chosen);

}  // namespace stillhouse

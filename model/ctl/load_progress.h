// How far a large model's loading is, on a terminal.
#pragma once

#include "formats/load_tensors.h"

namespace stillhouse {

inline constexpr uint64_t kShownBytesMin = 1 << 30;  // smaller models load at once

// Rewrites one line of standard error for each percent, and removes it at the end. Null, which
// reports nothing, where standard error is no terminal.
LoadProgressCall ShowLoading();

}  // namespace stillhouse

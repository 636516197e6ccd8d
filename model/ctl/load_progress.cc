#include "model/ctl/load_progress.h"

#include <unistd.h>

#include <cstdio>

namespace stillhouse {

LoadProgressCall ShowLoading() {
  if (::isatty(STDERR_FILENO) == 0) return nullptr;
  return [shown = -1](const LoadProgress& progress) mutable {
    if (progress.bytes_total < kShownBytesMin) return;
    if (progress.bytes_done == progress.bytes_total) {
      std::fputs("\r\x1b[K", stderr);
      return;
    }
    const int percent = static_cast<int>(progress.bytes_done / (progress.bytes_total / 100));
    if (percent == shown) return;
    shown = percent;
    std::fprintf(stderr, "\rloading: %d %% of %.1f GB", percent,
                 static_cast<double>(progress.bytes_total) / 1e9);
  };
}

}  // namespace stillhouse

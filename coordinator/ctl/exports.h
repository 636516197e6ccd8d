// Exports: where the students of finished runs lie, and whether they are still as they were
// written.
#pragma once

#include <string>
#include <vector>

#include "coordinator/admin_view.h"

namespace stillhouse {

// The journal has paths as they were when a run ended. Those of runs whose folder lies in `output`
// are shown below it, wherever the project was moved or copied to since.
//
// Returns a line for each finished run whose export is not there any more, or has a file that is
// missing or of another size than `export.json` in the run's folder says; it also becomes the run's
// message. Files are not read.
std::vector<std::string> CheckExports(const std::string& output, AdminView* view);

}  // namespace stillhouse

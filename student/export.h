// Export: a trained student as a Hugging Face folder.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "student/run_context.h"
#include "student/student_state.h"

namespace stillhouse {

// Writes the weights of `state`, all of which are there, into `<output>/<student>/`, or
// `<output>/<student>-<hash8>/` where that is another run's, and returns the folder. It appears
// whole, by rename. `<run folder>/export.json` names it beforehand,
// so that an export that was complete before a crash is found again and not made twice, and
// afterwards has size and SHA-256 of each file: one that was damaged since is written again.
absl::StatusOr<std::string> ExportStudent(const RunContext& context, StudentState& state);

}  // namespace stillhouse

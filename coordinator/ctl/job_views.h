// Views of a job, its runs and the workers: tables and text for people, JSON for programs.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "coordinator/admin_view.h"

namespace stillhouse {

bool HasEnded(const RunView& run);  // finished, failed or cancelled
// The exit code of those who waited for its end: failed, else interrupted if anything was
// cancelled, else ok.
int EndedCode(const AdminView& view);
// `name` is that of a run, which the view shows with its job.
bool IsOfOneRun(const AdminView& view, const std::string& name);
// Its loss is known: a step was made since it was last started.
bool HasLoss(const RunView& run);
// The step that the run would go on after if it were started again.
uint64_t SavedStep(const RunView& run);
double SecondsLeft(const RunView& run);  // of training, from the steps so far; 0: unknown

nlohmann::ordered_json JobsAndRunsJson(const AdminView& view);
nlohmann::ordered_json WorkersJson(const AdminView& view);
std::string JobsAndRunsTable(const AdminView& view);
std::string WorkersTable(const AdminView& view);
std::string DescribeText(const AdminView& view);
// What a job ended with: one row per run.
std::string ResultTable(const AdminView& view);

}  // namespace stillhouse

#include "coordinator/ctl/job_views.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/status.h"
#include "coordinator/ctl/output.h"

namespace stillhouse {
namespace {

using Json = nlohmann::ordered_json;

Json ToJson(const std::optional<RunEvaluation>& evaluation) {
  if (!evaluation.has_value()) return nullptr;
  return {{"step", evaluation->step},
          {"rows", evaluation->rows},
          {"perplexity", evaluation->perplexity},
          {"teacher_perplexity", evaluation->teacher_perplexity},
          {"kl_to_teacher", evaluation->kl},
          {"kl_se", evaluation->kl_se},
          {"jsd", evaluation->jsd},
          {"jsd_se", evaluation->jsd_se},
          {"agreement", evaluation->agreement},
          {"agreement_se", evaluation->agreement_se}};
}

Json ToJson(const JobView& job) {
  return {{"name", job.name},
          {"state", job.state},
          {"problem", job.problem},
          {"recipe", job.recipe_path},
          {"plan", job.plan.Hex()},
          {"teacher", job.teacher.Hex()},
          {"chunks", job.chunks},
          {"chunks_durable", job.chunks_durable},
          {"chunks_leased", job.chunks_leased},
          {"chunks_poisoned", job.chunks_poisoned},
          {"tokens", job.rows},
          {"tokens_durable", job.rows_durable},
          {"teacher_forward_tokens", job.rows_computed},
          {"parts_mismatched", job.parts_mismatched},
          {"tokens_per_s", job.rows_per_s},
          {"seconds_left", job.seconds_left},
          {"capture_seconds", job.capture_seconds},
          {"sections", job.sections},
          {"held_out_sections", job.held_out_sections}};
}

Json ToJson(const RunView& run) {
  return {{"name", run.name},
          {"state", run.state},
          {"message", run.last.message},
          {"step", run.last.step},
          {"steps", run.last.steps},
          {"loss", HasLoss(run) ? Json(run.last.loss) : Json()},
          {"tokens_per_s", run.last.rows_per_s},
          {"seconds", run.last.seconds},
          {"seconds_left", SecondsLeft(run)},
          {"waited_seconds", run.last.waited_s},
          {"params", run.last.parameters},
          {"teacher_forward_tokens", run.teacher_rows_charged},
          {"best", ToJson(run.best)},
          {"final", ToJson(run.final)},
          {"folder", run.folder},
          {"checkpoint", run.checkpoint},
          {"exported_to", run.exported_to},
          {"hash", run.hash}};
}

std::string Share(uint64_t done, uint64_t all) {
  return all == 0 ? "-" : absl::StrFormat("%d%%", static_cast<int>(100.0 * done / all));
}

std::string OrDash(double value, const char* unit) {
  return value > 0 ? absl::StrCat(HumanCount(value), unit) : "-";
}

std::string LeftOrDash(double seconds) {
  return seconds > 0 ? HumanDuration(absl::Seconds(seconds)) : "-";
}

std::string PlusMinus(double value, double error, int digits) {
  // Of fewer than two documents no error is known.
  if (std::isnan(error)) return absl::StrFormat("%.*f ± ?", digits, value);
  return absl::StrFormat("%.*f ± %.*f", digits, value, digits, error);
}

}  // namespace

bool HasEnded(const RunView& run) {
  return run.state == "finished" || run.state == "failed" || run.state == "cancelled";
}

int EndedCode(const AdminView& view) {
  const auto any = [&](const char* state) {
    const auto is_so = [&](const auto& thing) { return thing.state == state; };
    return std::any_of(view.jobs.begin(), view.jobs.end(), is_so) ||
           std::any_of(view.runs.begin(), view.runs.end(), is_so);
  };
  if (any("failed")) return kExitFailed;
  return any("cancelled") ? kExitInterrupted : kExitOk;
}

bool IsOfOneRun(const AdminView& view, const std::string& name) {
  if (view.runs.size() != 1) return false;
  const std::string& run = view.runs.front().name;
  const bool is_job = !view.jobs.empty() && view.jobs.front().name == absl::StrCat("job/", name);
  return run == name || (!is_job && run.ends_with("/" + name));
}

bool HasLoss(const RunView& run) { return run.last.step > 0 && run.last.loss != 0; }

uint64_t SavedStep(const RunView& run) {
  absl::string_view name = run.checkpoint;  // "step-40.2.<nonce>", "" before the first
  uint64_t step = 0;
  if (!absl::ConsumePrefix(&name, "step-")) return 0;
  return absl::SimpleAtoi(name.substr(0, name.find('.')), &step) ? step : 0;
}

double SecondsLeft(const RunView& run) {
  const RunProgress& last = run.last;
  const double working = last.seconds - last.waited_s;
  if (HasEnded(run) || last.step == 0 || last.steps <= last.step || working <= 0) return 0;
  return working / static_cast<double>(last.step) * static_cast<double>(last.steps - last.step);
}

Json JobsAndRunsJson(const AdminView& view) {
  Json jobs = Json::array(), runs = Json::array();
  for (const JobView& job : view.jobs) jobs.push_back(ToJson(job));
  for (const RunView& run : view.runs) runs.push_back(ToJson(run));
  return {{"jobs", jobs}, {"runs", runs}};
}

Json WorkersJson(const AdminView& view) {
  Json workers = Json::array();
  for (const WorkerView& worker : view.workers) {
    workers.push_back({{"name", worker.name},
                       {"role", worker.role},
                       {"state", worker.state},
                       {"host", worker.host},
                       {"pid", worker.pid},
                       {"holding", worker.holding},
                       {"last_heard_seconds", absl::ToDoubleSeconds(worker.last_heard)},
                       {"tokens_done", worker.rows_done},
                       {"producer_class", worker.producer_class}});
  }
  return {{"workers", workers}};
}

std::string JobsAndRunsTable(const AdminView& view) {
  Table table{.header = {"NAME", "STATE", "DONE", "TOKENS/S", "LEFT", "NOTE"}, .rows = {}};
  for (const JobView& job : view.jobs) {
    std::string note = job.problem;
    if (note.empty() && job.chunks_poisoned > 0)
      note = Counted(job.chunks_poisoned, "chunk") + " poisoned";
    table.rows.push_back({job.name, job.state, Share(job.rows_durable, job.rows),
                          OrDash(job.rows_per_s, ""), LeftOrDash(job.seconds_left), note});
  }
  for (const RunView& run : view.runs) {
    table.rows.push_back({run.name, run.state, Share(run.last.step, run.last.steps),
                          OrDash(run.last.rows_per_s, ""), LeftOrDash(SecondsLeft(run)),
                          run.last.message});
  }
  return table.rows.empty() ? "No jobs.\n" : RenderTable(table);
}

std::string WorkersTable(const AdminView& view) {
  Table table{.header = {"NAME", "ROLE", "STATE", "HOST", "PID", "HEARD", "TOKENS", "HOLDING"},
              .rows = {}};
  for (const WorkerView& worker : view.workers) {
    table.rows.push_back({worker.name, worker.role, worker.state, worker.host,
                          absl::StrCat(worker.pid), HumanDuration(worker.last_heard),
                          HumanCount(static_cast<double>(worker.rows_done)), worker.holding});
  }
  return table.rows.empty() ? "No workers.\n" : RenderTable(table);
}

namespace {

void AppendEvaluation(absl::string_view label, const std::optional<RunEvaluation>& evaluation,
                      std::string* out) {
  if (!evaluation.has_value()) return;
  absl::StrAppendFormat(
      out, "  %-12s step %d: perplexity %.2f (teacher %.2f), KL %s, agreement %s %%\n",
      std::string(label), evaluation->step, evaluation->perplexity, evaluation->teacher_perplexity,
      PlusMinus(evaluation->kl, evaluation->kl_se, 4),
      PlusMinus(100 * evaluation->agreement, 100 * evaluation->agreement_se, 2));
}

void AppendField(absl::string_view label, absl::string_view value, std::string* out) {
  if (!value.empty())
    absl::StrAppendFormat(out, "  %-12s %s\n", std::string(label), std::string(value));
}

}  // namespace

std::string DescribeText(const AdminView& view) {
  std::string out;
  for (const JobView& job : view.jobs) {
    absl::StrAppend(&out, job.name, "\n");
    AppendField("state", job.state, &out);
    AppendField("problem", job.problem, &out);
    AppendField("recipe", job.recipe_path, &out);
    AppendField("plan", job.plan.Hex(), &out);
    AppendField("teacher", job.teacher.Hex(), &out);
    AppendField("chunks",
                absl::StrCat(job.chunks_durable, " of ", job.chunks, " stored, ", job.chunks_leased,
                             " being computed, ", job.chunks_poisoned, " poisoned"),
                &out);
    AppendField("tokens",
                absl::StrCat(job.rows_durable, " of ", job.rows, " stored; the teacher computed ",
                             job.rows_computed, " for this job"),
                &out);
    AppendField("capture",
                job.capture_seconds > 0 ? HumanDuration(absl::Seconds(job.capture_seconds)) : "",
                &out);
    AppendField("left", job.seconds_left > 0 ? HumanDuration(absl::Seconds(job.seconds_left)) : "",
                &out);
    AppendField("sections", absl::StrJoin(job.sections, ", "), &out);
    AppendField("held out", absl::StrJoin(job.held_out_sections, ", "), &out);
  }
  for (const RunView& run : view.runs) {
    absl::StrAppend(&out, run.name, "\n");
    AppendField("state", run.state, &out);
    AppendField("message", run.last.message, &out);
    AppendField("step",
                run.last.steps > 0 ? absl::StrCat(run.last.step, " of ", run.last.steps) : "",
                &out);
    AppendField("loss", HasLoss(run) ? absl::StrFormat("%.4f", run.last.loss) : "", &out);
    AppendField(
        "time",
        absl::StrCat(HumanDuration(absl::Seconds(run.last.seconds)), ", of which ",
                     HumanDuration(absl::Seconds(run.last.waited_s)), " waiting for the teacher"),
        &out);
    AppendField("paid", absl::StrCat(run.teacher_rows_charged, " teacher tokens"), &out);
    AppendEvaluation("best", run.best, &out);
    AppendEvaluation(run.state == "finished" ? "final" : "evaluated", run.final, &out);
    AppendField("folder", run.folder, &out);
    AppendField("checkpoint", run.checkpoint, &out);
    AppendField("exported to", run.exported_to, &out);
  }
  return out;
}

std::string ResultTable(const AdminView& view) {
  Table table{.header = {"RUN", "STATE", "PARAMS", "STEPS", "PERPLEXITY", "KL", "AGREEMENT %",
                         "PAID", "TIME"},
              .rows = {}};
  double teacher_perplexity = 0;
  for (const RunView& run : view.runs) {
    if (run.final.has_value()) teacher_perplexity = run.final->teacher_perplexity;
    table.rows.push_back(
        {run.name, run.state, HumanCount(static_cast<double>(run.last.parameters)),
         absl::StrCat(run.last.step),
         run.final ? absl::StrFormat("%.2f", run.final->perplexity) : "-",
         run.final ? PlusMinus(run.final->kl, run.final->kl_se, 4) : "-",
         run.final ? PlusMinus(100 * run.final->agreement, 100 * run.final->agreement_se, 2) : "-",
         HumanCount(static_cast<double>(run.teacher_rows_charged)),
         HumanDuration(absl::Seconds(run.last.seconds))});
  }
  std::string out = table.rows.empty() ? "No runs.\n" : RenderTable(table);
  for (const JobView& job : view.jobs) {
    absl::StrAppend(&out, job.name, ": ", job.state, "; ", job.rows_durable,
                    " tokens in the cache, ", job.rows_computed,
                    " computed by the teacher for this job");
    if (teacher_perplexity > 0) {
      absl::StrAppend(&out, absl::StrFormat("; teacher perplexity %.2f", teacher_perplexity));
    }
    absl::StrAppend(&out, "\n");
  }
  for (const RunView& run : view.runs) {
    if (!run.exported_to.empty()) absl::StrAppend(&out, run.name, ": ", run.exported_to, "\n");
    if (run.state == "failed") absl::StrAppend(&out, run.name, " failed: ", run.last.message, "\n");
  }
  return out;
}

}  // namespace stillhouse

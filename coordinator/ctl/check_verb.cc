// check: everything about a recipe that can be known before anything runs.
#include <sys/statvfs.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/command_line.h"
#include "common/file.h"
#include "common/status.h"
#include "coordinator/ctl/estimate.h"
#include "coordinator/ctl/output.h"
#include "coordinator/ctl/prepare_job.h"
#include "coordinator/ctl/verb.h"

namespace stillhouse {
namespace {

constexpr uint32_t kHeldOutUsual = 10;
constexpr double kEpochsUsual = 50;  // more are likelier a slip of the pen

using Json = nlohmann::ordered_json;

struct CheckOptions {
  std::string recipe;
  OutputFormat format = OutputFormat::kTable;
};

struct Checked {
  std::shared_ptr<const PreparedJob> job;
  Machine machine;
  PlanSize plan;
  CaptureEstimate capture;
  std::vector<StudentEstimate> students;  // in the order of the recipe
  uint64_t disk_free = 0;                 // where the cache will be; 0: unknown
  std::vector<std::string> warnings;
};

// Free bytes of the file system of `path`, or of the nearest folder above it that exists.
uint64_t FreeBytes(std::string path) {
  while (!PathExists(path) && FolderOf(path) != path) path = FolderOf(path);
  struct statvfs info {};
  if (statvfs(path.c_str(), &info) != 0) return 0;
  return static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
}

void AddWarnings(Checked& checked) {
  const auto too_large = [&](uint64_t bytes, absl::string_view who) {
    if (checked.machine.memory_bytes == 0 || bytes <= checked.machine.memory_bytes) return;
    checked.warnings.push_back(absl::StrCat(who, " needs about ", HumanBytes(bytes), " of memory; ",
                                            HumanBytes(checked.machine.memory_bytes),
                                            " are available on this machine now"));
  };
  too_large(checked.capture.memory_bytes, "the teacher");
  for (size_t i = 0; i < checked.students.size(); ++i) {
    too_large(checked.students[i].memory_bytes, checked.job->recipe.students[i].name);
  }
  const bool until_read = checked.job->recipe.cache.retention == CacheRecipe::Retention::kUntilRead;
  const bool again = std::any_of(checked.students.begin(), checked.students.end(),
                                 [](const StudentEstimate& s) { return s.epochs > 1; });
  if (until_read && (again || checked.students.size() > 1) &&
      checked.capture.TotalBytes() > checked.job->recipe.cache.bytes_max) {
    checked.warnings.push_back(
        "cache.retention: until_read: what was freed is computed again for each epoch and each "
        "student that needs it, which the times above leave out");
  }
  for (const TopRecipe& top : checked.job->recipe.capture.top) {
    if (top.k <= checked.job->teacher_config.vocab_size) continue;
    checked.warnings.push_back(
        absl::StrCat("capture.logits: ", top.k, " ids are wanted, the teacher has ",
                     checked.job->teacher_config.vocab_size, "; all of them are stored"));
  }
  for (size_t i = 0; i < checked.students.size(); ++i) {
    const StudentEstimate& student = checked.students[i];
    if (student.epochs <= kEpochsUsual) continue;
    checked.warnings.push_back(absl::StrFormat(
        "students[%d]: steps times batch.tokens read the text %.0f times; are so many meant?", i,
        student.epochs));
  }
  uint32_t held_out = 0;
  for (uint32_t i = 0; i < checked.job->plan->chunk_count(); ++i) {
    const PlanChunk chunk = checked.job->plan->chunk(i);
    if (chunk.held_out) held_out += chunk.end - chunk.begin;
  }
  if (held_out > 0 && held_out < kHeldOutUsual) {
    checked.warnings.push_back(absl::StrCat(
        "only ", Counted(held_out, "document"), held_out == 1 ? " is" : " are",
        " held out: the evaluation and its standard errors say little; raise dataset.held_out, or "
        "add texts"));
  }
  if (checked.plan.held_out_rows == 0) {
    checked.warnings.push_back("nothing is held out, so students cannot be evaluated");
  }
}

absl::StatusOr<Checked> Check(const Recipe& recipe) {
  Checked checked;
  const auto say = [](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); };
  SH_ASSIGN_OR_RETURN(checked.job, PrepareJob(recipe, say));
  const ModelConfig& teacher = checked.job->teacher_config;
  SH_RETURN_IF_ERROR(CheckAgainstTeacher(recipe, teacher));
  checked.machine = ThisMachine();
  checked.plan = MeasurePlan(*checked.job->plan);
  checked.capture = EstimateCapture(recipe, teacher, checked.plan, checked.machine);
  uint64_t bytes = checked.capture.TotalBytes();
  if (recipe.cache.bytes_max > 0) bytes = std::min(bytes, recipe.cache.bytes_max);
  for (const StudentRecipe& student : recipe.students) {
    checked.students.push_back(
        EstimateStudent(recipe, student, teacher, checked.plan, checked.machine));
    bytes += checked.students.back().export_bytes + checked.students.back().checkpoint_bytes;
  }
  checked.disk_free = FreeBytes(recipe.cache_directory);
  if (checked.disk_free != 0 && bytes > checked.disk_free) {
    return absl::ResourceExhaustedError(absl::StrCat(
        recipe.cache_directory, ": cache, checkpoints and exports need about ", HumanBytes(bytes),
        ", but only ", HumanBytes(checked.disk_free), " are free there"));
  }
  AddWarnings(checked);
  return checked;
}

std::vector<std::string> Assumptions(const Machine& machine) {
  return {
      "nothing of this is in the cache yet; what is there is not paid for again",
      absl::StrFormat(
          "stored per token: %.0f bytes of stats, %.2f per draw, %.2f per id of "
          "top-k and top-p (k_max), 2 per hidden value (int8: 1), %.0f %% of headers and "
          "index",
          kStatsBytesPerRow, kSampledBytesPerDraw, kTopBytesPerId, (kRecordOverhead - 1) * 100),
      absl::StrFormat("%s at %.0f GFLOP/s in bf16 and %.0f in fp32, one process at a time",
                      Counted(static_cast<uint64_t>(machine.cores), "CPU core"),
                      machine.FlopsPerSecond("bf16") / machine.cores / 1e9,
                      machine.FlopsPerSecond("fp32") / machine.cores / 1e9),
  };
}

Json ToJson(const Checked& checked) {
  const PreparedJob& job = *checked.job;
  const Recipe& recipe = job.recipe;
  Json out;
  out["recipe"] = recipe.path;
  out["name"] = recipe.name;
  out["teacher"] = {{"model", recipe.teacher.model},
                    {"fingerprint", job.teacher.Hex()},
                    {"parameters", job.teacher_config.ParameterCount()},
                    {"layers", job.teacher_config.layers},
                    {"dtype", recipe.teacher.dtype},
                    {"memory_bytes", checked.capture.memory_bytes}};
  out["dataset"] = {{"plan", job.plan->digest().Hex()},
                    {"documents", job.plan->document_count()},
                    {"chunks", job.plan->chunk_count()},
                    {"training_tokens", checked.plan.training_rows},
                    {"held_out_tokens", checked.plan.held_out_rows}};
  out["capture"] = {
      {"sections", Json::array()},
      {"teacher_tokens", checked.capture.teacher_tokens},
      {"cache_bytes", checked.capture.cache_bytes},
      {"held_out_bytes", checked.capture.held_out_bytes},
      {"artefact_bytes", checked.capture.artefact_bytes},
      {"bytes_max", recipe.cache.bytes_max},
      {"retention",
       recipe.cache.retention == CacheRecipe::Retention::kKeep ? "keep" : "until_read"},
      {"disk_free_bytes", checked.disk_free},
      {"seconds", std::ceil(checked.capture.seconds)}};
  for (const SectionSpec& spec : job.sections) {
    out["capture"]["sections"].push_back(spec.Canonical());
  }
  out["students"] = Json::array();
  for (size_t i = 0; i < checked.students.size(); ++i) {
    const StudentRecipe& student = recipe.students[i];
    const StudentEstimate& estimate = checked.students[i];
    out["students"].push_back({{"name", student.name},
                               {"run", RunName(recipe, student)},
                               {"folder", RunFolder(recipe, student, job.Inputs())},
                               {"parameters", estimate.parameters},
                               {"layers", estimate.config.layers},
                               {"steps", student.steps},
                               {"tokens", estimate.rows},
                               {"epochs", estimate.epochs},
                               {"memory_bytes", estimate.memory_bytes},
                               {"export_bytes", estimate.export_bytes},
                               {"checkpoint_bytes", estimate.checkpoint_bytes},
                               {"seconds", std::ceil(estimate.seconds)}});
  }
  out["assumptions"] = Assumptions(checked.machine);
  out["warnings"] = checked.warnings;
  return out;
}

std::string ToTable(const Checked& checked) {
  const PreparedJob& job = *checked.job;
  const auto time = [](double seconds) { return HumanDuration(absl::Seconds(seconds)); };
  const auto count = [](uint64_t value) { return HumanCount(static_cast<double>(value)); };
  Table table;
  table.header = {"WHAT", "PARAMETERS", "STEPS", "TOKENS", "EPOCHS", "DISK", "MEMORY", "TIME"};
  table.rows.push_back({"capture", count(job.teacher_config.ParameterCount()), "-",
                        count(checked.capture.teacher_tokens), "-",
                        HumanBytes(checked.capture.TotalBytes()),
                        HumanBytes(checked.capture.memory_bytes), time(checked.capture.seconds)});
  for (size_t i = 0; i < checked.students.size(); ++i) {
    const StudentEstimate& estimate = checked.students[i];
    const StudentRecipe& student = job.recipe.students[i];
    table.rows.push_back({absl::StrCat("student ", student.name), count(estimate.parameters),
                          absl::StrCat(student.steps), count(estimate.rows),
                          absl::StrFormat("%.2f", estimate.epochs),
                          HumanBytes(estimate.export_bytes + estimate.checkpoint_bytes),
                          HumanBytes(estimate.memory_bytes), time(estimate.seconds)});
  }
  std::string out = absl::StrCat(job.recipe.path, ": nothing wrong with it. About:\n\n",
                                 RenderTable(table), "\n");
  for (const std::string& line : Assumptions(checked.machine)) {
    absl::StrAppend(&out, "assumed: ", line, "\n");
  }
  for (const std::string& line : checked.warnings) absl::StrAppend(&out, "warning: ", line, "\n");
  return out;
}

}  // namespace

void AddCheckVerb(Command app, ChosenVerb& chosen) {
  auto options = std::make_shared<CheckOptions>();
  Command verb =
      app.AddCommand("check", "Check a recipe and say what it would cost, before anything runs");
  verb.AddOption("RECIPE", &options->recipe, "a recipe (coordinatorctl init writes one)")
      .Required();
  AddOutputOption(verb, &options->format);
  verb.SetFooter(
      "Reads the teacher and tokenises the dataset; the plan is kept for the run.\n"
      "Examples:\n"
      "  coordinatorctl check recipe.yaml\n"
      "  coordinatorctl check recipe.yaml -o json\n");
  verb.OnParsed([options, &chosen] {
    chosen = [options]() -> absl::StatusOr<int> {
      SH_ASSIGN_OR_RETURN(const Recipe recipe, ReadRecipe(options->recipe));
      SH_ASSIGN_OR_RETURN(const Checked checked, Check(recipe));
      PrintText(options->format == OutputFormat::kTable ? ToTable(checked)
                                                        : Render(ToJson(checked), options->format));
      return kExitOk;
    };
  });
}

}  // namespace stillhouse

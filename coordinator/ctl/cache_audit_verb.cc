// coordinatorctl cache audit.
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "common/command_line.h"
#include "common/status.h"
#include "coordinator/ctl/cache_audit.h"
#include "coordinator/ctl/cache_session.h"
#include "coordinator/ctl/cache_verbs.h"
#include "coordinator/ctl/output.h"
#include "formats/model_files.h"
#include "recipe/recipe.h"
#include "storage/service/cache_client.h"

namespace stillhouse {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kBatchesMax = 20'000;  // each is a word of a command line

struct AuditVerbOptions {
  CacheChoice choice;
  OutputFormat format = OutputFormat::kTable;
  std::string job;
  std::string model, dtype;
  std::string sample = "0.1%";
  std::optional<uint64_t> seed;
};

// "0.1%" or "0.001"
absl::StatusOr<double> ParseShare(absl::string_view text) {
  double share = 0;
  const bool percent = absl::ConsumeSuffix(&text, "%");
  if (!absl::SimpleAtod(text, &share) || !(share > 0) || share > (percent ? 100 : 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--sample ", text, ": expected a share of the rows, as 0.1% or 0.001"));
  }
  return percent ? share / 100 : share;
}

// --model and --dtype, or the recipe's.
absl::Status ChooseTeacher(AuditVerbOptions* options) {
  if (options->model.empty() && options->choice.coordinator.recipe.empty()) {
    return absl::InvalidArgumentError("which teacher? --model MODEL or --recipe RECIPE");
  }
  if (!options->choice.coordinator.recipe.empty()) {
    SH_ASSIGN_OR_RETURN(const Recipe recipe, ReadRecipe(options->choice.coordinator.recipe));
    if (options->model.empty()) options->model = recipe.teacher.model;
    if (options->dtype.empty()) options->dtype = recipe.teacher.dtype;
  }
  if (options->dtype.empty()) options->dtype = "bf16";
  return absl::OkStatus();
}

absl::StatusOr<JobObject> FindJob(CacheSession& cache, absl::string_view name) {
  absl::ConsumePrefix(&name, "job/");
  const auto bytes = cache.GetObject(JobObjectName(name));
  if (absl::IsNotFound(bytes.status())) {
    return absl::NotFoundError(absl::StrCat("the cache has no job ", name));
  }
  SH_RETURN_IF_ERROR(bytes.status());
  return ParseJobObject(**bytes);
}

std::string Where(const AuditedSection& section) {
  if (section.distance.worst == 0) return "-";
  return absl::StrCat("document ", section.worst_document, " row ", section.distance.worst_row);
}

double MeanOf(const SectionDistance& distance) {
  return distance.rows == 0 ? 0 : distance.sum / static_cast<double>(distance.rows);
}

void ShowTable(const AuditReport& report, const Plan& plan, uint64_t seed) {
  Table table{{"SECTION", "ROWS", "EQUAL", "MEAN", "WORST", "AT", "ALLOWED", "HOLDS"}, {}};
  for (const auto& [name, section] : report.sections) {
    const auto spec = ParseSectionSpec(name);
    const SectionTolerance allowed = ToleranceOf(spec.ok() ? spec->kind : SectionKind::kStats);
    const SectionDistance& distance = section.distance;
    table.rows.push_back({name, absl::StrCat(distance.rows), absl::StrCat(distance.equal),
                          absl::StrFormat("%.4f", MeanOf(distance)),
                          absl::StrFormat("%.3f", distance.worst), Where(section),
                          absl::StrFormat("%.2f, %.1f", allowed.mean, allowed.row),
                          distance.rows == 0                  ? "-"
                          : spec.ok() && section.Holds(*spec) ? "yes"
                                                              : "NO"});
  }
  PrintText(RenderTable(table));
  uint64_t missing = 0;
  for (const auto& [name, section] : report.sections) missing += section.missing_rows;
  for (const std::string& line : report.damaged) {
    PrintText(absl::StrCat("damaged: ", WithoutControls(line), "\n"));
  }
  PrintText(absl::StrCat(
      report.rows, " of ", plan.training_rows() + plan.held_out_rows(), " rows computed again in ",
      report.batches, " batches (--seed ", seed, ")",
      missing == 0 ? "" : absl::StrCat(", ", missing, " rows of sections are not captured"), ": ",
      report.Holds() ? "the teacher says what is stored" : "NOT what is stored", "\n"));
}

Json Describe(const AuditReport& report, const Plan& plan, uint64_t seed) {
  Json sections = Json::array();
  for (const auto& [name, section] : report.sections) {
    const auto spec = ParseSectionSpec(name);
    sections.push_back({{"section", name},
                        {"rows", section.distance.rows},
                        {"equal", section.distance.equal},
                        {"missing", section.missing_rows},
                        {"mean", MeanOf(section.distance)},
                        {"worst", section.distance.worst},
                        {"worst_document", section.worst_document},
                        {"worst_row", section.distance.worst_row},
                        {"holds", spec.ok() && section.Holds(*spec)}});
  }
  return {{"rows", report.rows},       {"rows_of_job", plan.training_rows() + plan.held_out_rows()},
          {"batches", report.batches}, {"seed", seed},
          {"sections", sections},      {"damaged", report.damaged},
          {"holds", report.Holds()}};
}

absl::StatusOr<int> Audit(AuditVerbOptions options) {
  SH_ASSIGN_OR_RETURN(const double share, ParseShare(options.sample));
  SH_RETURN_IF_ERROR(ChooseTeacher(&options));
  SH_ASSIGN_OR_RETURN(const auto cache, OpenCacheSession(options.choice));
  SH_ASSIGN_OR_RETURN(const JobObject job, FindJob(*cache, options.job));
  SH_ASSIGN_OR_RETURN_AT(const ModelFiles teacher, OpenModelFiles(options.model), "teacher");
  SH_ASSIGN_OR_RETURN(const Digest fingerprint, TeacherFingerprint(teacher, UserCacheFolder()));
  if (fingerprint != job.teacher) {
    return absl::FailedPreconditionError(
        absl::StrCat("job ", job.name, " was captured from teacher ", job.teacher.ShortHex(), ", ",
                     options.model, " is ", fingerprint.ShortHex()));
  }
  SH_ASSIGN_OR_RETURN_AT(const auto bytes, cache->GetObject(PlanObjectName(job.plan)), "plan");
  SH_ASSIGN_OR_RETURN_AT(const auto plan, ParsePlan(bytes), "plan");
  const uint64_t seed = options.seed.value_or(std::random_device()());
  const std::vector<AuditBatch> batches = DrawBatches(*plan, share, seed);
  if (batches.size() > kBatchesMax) {
    return absl::InvalidArgumentError(absl::StrCat("--sample ", options.sample, " is ",
                                                   batches.size(), " batches; at most ",
                                                   kBatchesMax, " at once"));
  }
  uint64_t rows = 0;
  for (const AuditBatch& batch : batches) rows += batch.rows;
  StatusLine line;
  line.Show("loading the teacher");
  SH_ASSIGN_OR_RETURN(
      const AuditReport report,
      AuditJob(job, *plan, *bytes, batches, *cache,
               {.model = options.model, .dtype = options.dtype, .on_progress = [&](uint64_t done) {
                  line.Show(absl::StrCat("computing again: ", done, " of ", rows, " rows"));
                }}));
  line.Show("");
  if (report.damaged.empty() &&
      std::all_of(report.sections.begin(), report.sections.end(),
                  [](const auto& item) { return item.second.distance.rows == 0; })) {
    return absl::FailedPreconditionError(absl::StrCat(
        "nothing of the ", report.rows, " rows drawn is captured yet (--seed ", seed, ")"));
  }
  if (options.format == OutputFormat::kTable) {
    ShowTable(report, *plan, seed);
  } else {
    PrintText(Render(Describe(report, *plan, seed), options.format));
  }
  return report.Holds() ? kExitOk : kExitCorrupt;
}

}  // namespace

void AddCacheAuditVerb(Command cache, ChosenVerb& chosen) {
  auto options = std::make_shared<AuditVerbOptions>();
  Command audit = cache.AddCommand(
      "audit", "Let the teacher compute a sample of a job again and compare it with the cache");
  audit.AddOption("JOB", &options->job, "job").Required();
  audit.AddOption("--sample", &options->sample, "share of the rows, as 0.1% or 0.001")
      .ShowDefault();
  audit.AddOption("--seed", &options->seed, "which ones; default: at random, printed");
  audit.AddOption("--model", &options->model, "the teacher; default: the recipe's");
  audit.AddOption("--dtype", &options->dtype, "to compute in; default: the recipe's, or bf16")
      .OneOf({"bf16", "fp32"});
  AddCacheOptions(audit, &options->choice);
  AddOutputOption(audit, &options->format);
  audit.SetFooter(
      "Whole batches are computed, as they were when they were captured: on the same kind of "
      "machine\nevery row is equal, on another one close (docs/formats.md tells the distances). "
      "Exit code 7 when\nthe teacher says something else.\n"
      "Examples:\n  coordinatorctl cache audit handbook --recipe handbook.yaml\n"
      "  coordinatorctl cache audit handbook --dir cache --model teacher.gguf --sample 1%\n");
  audit.OnParsed([options, &chosen] { chosen = [options] { return Audit(*options); }; });
}

}  // namespace stillhouse

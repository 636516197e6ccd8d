// cache rm | pin | unpin | gc: what of a cache is kept, and what is given back.
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/strip.h"
#include "common/command_line.h"
#include "common/status.h"
#include "coordinator/admin_view.h"
#include "coordinator/ctl/cache_session.h"
#include "coordinator/ctl/cache_verbs.h"
#include "coordinator/ctl/job_views.h"
#include "coordinator/ctl/output.h"
#include "proto/admin.pb.h"

namespace stillhouse {
namespace {

using Json = nlohmann::ordered_json;

struct SpaceOptions {
  CacheChoice choice;
  OutputFormat format = OutputFormat::kTable;
  std::string job;
  std::string teacher;
  std::vector<std::string> sections;
  bool dry_run = false;
};
using Options = std::shared_ptr<SpaceOptions>;

bool IsAtWork(const AdminView& view, const JobView& job) {
  if (job.state == "capturing") return true;
  const std::string prefix = absl::StrCat("run/", job.name.substr(sizeof("job/") - 1), "/");
  for (const RunView& run : view.runs) {
    if (run.name.rfind(prefix, 0) == 0 && !HasEnded(run)) return true;
  }
  return false;
}

// FailedPrecondition while a job that would lose something is captured or read.
absl::Status RefuseWhileAtWork(const SpaceOptions& options, const SpaceRequest& request) {
  SH_ASSIGN_OR_RETURN(const std::optional<Coordinator> coordinator, CoordinatorOf(options.choice));
  if (!coordinator.has_value()) return absl::OkStatus();
  SH_ASSIGN_OR_RETURN(const std::string body, AskCoordinator(*coordinator, "admin.Get",
                                                             pb::GetRequest().SerializeAsString()));
  SH_ASSIGN_OR_RETURN(const AdminView view, ParseAdminView(body));
  for (const JobView& job : view.jobs) {
    if (!request.job.empty() && job.name != absl::StrCat("job/", request.job)) continue;
    if (request.teacher.has_value() && job.teacher != *request.teacher) continue;
    if (!IsAtWork(view, job)) continue;
    return absl::FailedPreconditionError(
        absl::StrCat(job.name, " is at work; wait for its end, or `coordinatorctl cancel ",
                     job.name, "` first"));
  }
  return absl::OkStatus();
}

Json ToJson(const SpaceResult& result, bool dry_run) {
  return {{"dry_run", dry_run},
          {"objects", result.objects},
          {"object_count", result.object_count},
          {"object_bytes", result.object_bytes},
          {"sections", result.sections},
          {"parts", result.parts},
          {"part_bytes", result.part_bytes},
          {"bytes", result.part_bytes + result.object_bytes},
          {"segments_freed", result.segments_freed},
          {"bytes_copied", result.bytes_copied},
          {"bytes_freed", result.bytes_freed}};
}

std::string ToText(const SpaceResult& result, bool dry_run) {
  std::string text;
  for (const std::string& name : result.objects) absl::StrAppend(&text, name, "\n");
  if (result.object_count > result.objects.size()) {
    absl::StrAppend(&text, "and ", result.object_count - result.objects.size(), " more objects\n");
  }
  absl::StrAppend(&text, dry_run ? "would remove " : "removed ", result.sections, " sections and ",
                  result.object_count, " objects, ",
                  HumanBytes(result.part_bytes + result.object_bytes));
  if (!dry_run) {
    absl::StrAppend(&text, "; gave back ", HumanBytes(result.bytes_freed), " in ",
                    result.segments_freed, " segments");
  }
  return text + "\n";
}

absl::StatusOr<int> Free(const SpaceOptions& options, const SpaceRequest& request) {
  if (request.what == SpaceRequest::What::kRemove && !request.dry_run) {
    SH_RETURN_IF_ERROR(RefuseWhileAtWork(options, request));
  }
  SH_ASSIGN_OR_RETURN(const auto cache,
                      OpenCacheSession(options.choice, request.dry_run ? CacheAccess::kRead
                                                                       : CacheAccess::kChange));
  SH_ASSIGN_OR_RETURN(const SpaceResult result, cache->Space(request));
  PrintText(options.format == OutputFormat::kTable
                ? ToText(result, request.dry_run)
                : Render(ToJson(result, request.dry_run), options.format));
  return kExitOk;
}

absl::StatusOr<int> Rm(const SpaceOptions& options) {
  if (options.job.empty() && options.teacher.empty() && options.sections.empty()) {
    return absl::InvalidArgumentError("say what: JOB, --teacher HEX or --section SPEC");
  }
  if (!options.job.empty() && !options.teacher.empty()) {
    return absl::InvalidArgumentError("a job has one teacher: JOB or --teacher, not both");
  }
  SpaceRequest request{
      .what = SpaceRequest::What::kRemove, .job = options.job, .dry_run = options.dry_run};
  if (!options.teacher.empty()) {
    SH_ASSIGN_OR_RETURN_AT(request.teacher, DigestFromHex(options.teacher), "--teacher");
  }
  for (const std::string& text : options.sections) {
    SH_ASSIGN_OR_RETURN_AT(request.sections.emplace_back(), ParseSectionSpec(text), "--section");
  }
  return Free(options, request);
}

absl::StatusOr<int> Gc(const SpaceOptions& options) {
  return Free(options, {.what = SpaceRequest::What::kCollect, .dry_run = options.dry_run});
}

absl::StatusOr<int> Pin(const SpaceOptions& options) {
  SH_ASSIGN_OR_RETURN(const auto cache, OpenCacheSession(options.choice, CacheAccess::kChange));
  SH_RETURN_IF_ERROR(cache->Pin(options.job));
  PrintText(absl::StrCat(options.job, " is pinned: what it wants now stays\n"));
  return kExitOk;
}

absl::StatusOr<int> Unpin(const SpaceOptions& options) {
  SH_ASSIGN_OR_RETURN(const auto cache, OpenCacheSession(options.choice, CacheAccess::kChange));
  SH_RETURN_IF_ERROR(cache->Unpin(options.job));
  PrintText(absl::StrCat(options.job, " is not pinned any more\n"));
  return kExitOk;
}

using Verb = absl::StatusOr<int> (*)(const SpaceOptions&);

Command AddVerb(Command cache, ChosenVerb& chosen, const char* name, const char* what, Verb verb,
                const Options& options) {
  Command added = cache.AddCommand(name, what);
  AddCacheOptions(added, &options->choice);
  added.OnParsed([options, verb, &chosen] {
    options->job = std::string(absl::StripPrefix(options->job, "job/"));  // as other verbs print it
    chosen = [options, verb] { return verb(*options); };
  });
  return added;
}

}  // namespace

void AddCacheSpaceVerbs(Command cache, ChosenVerb& chosen) {
  auto options = std::make_shared<SpaceOptions>();

  Command rm = AddVerb(cache, chosen, "rm", "Remove a job and what only it wants", Rm, options);
  rm.AddOption("JOB", &options->job, "job");
  rm.AddOption("--teacher", &options->teacher, "every job of this teacher (64 digits)")
      .ValueName("HEX");
  rm.AddOption("--section", &options->sections,
               "only these sections, by canonical name; of all jobs if none is named")
      .OneValueEach()
      .ValueName("SPEC");
  rm.AddFlag("--dry-run", &options->dry_run, "say what would go, change nothing");
  AddOutputOption(rm, &options->format);
  rm.SetFooter(
      "What another job or a pin wants stays. Exit code 3 when there is no such job, 4 when it is\n"
      "pinned or at work.\n"
      "Examples:\n  coordinatorctl cache rm handbook --dir cache --dry-run\n"
      "  coordinatorctl cache rm handbook --section 'logits/sampled?draws=50' --dir cache\n");

  Command gc = AddVerb(cache, chosen, "gc", "Give back what nobody wants", Gc, options);
  gc.AddFlag("--dry-run", &options->dry_run, "say what would go, change nothing");
  AddOutputOption(gc, &options->format);
  gc.SetFooter(
      "Removes sections, plans and artefacts that no job and no pin wants, and rewrites segments "
      "of\n"
      "which less than half is alive. Exit code 3 when there is no cache, 4 when it is held.\n"
      "Examples:\n  coordinatorctl cache gc --dir cache --dry-run\n"
      "  coordinatorctl cache gc --server ipc:///run/user/1000/x/cache.sock -o json\n");

  Command pin = AddVerb(cache, chosen, "pin", "Keep what a job wants now", Pin, options);
  pin.AddOption("JOB", &options->job, "job").Required();
  pin.SetFooter(
      "It stays when the job is submitted with another plan, and `rm` refuses it. Exit code 3 "
      "when\n"
      "there is no such job.\n"
      "Example:\n  coordinatorctl cache pin handbook --dir cache\n");

  Command unpin = AddVerb(cache, chosen, "unpin", "End a pin", Unpin, options);
  unpin.AddOption("JOB", &options->job, "job").Required();
  unpin.SetFooter(
      "Exit code 3 when it is not pinned.\n"
      "Example:\n  coordinatorctl cache unpin handbook --dir cache\n");
}

}  // namespace stillhouse

#include "coordinator/ctl/prepare_job.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/clock.h"
#include "common/file.h"
#include "common/status.h"
#include "coordinator/ctl/connection.h"
#include "coordinator/ctl/estimate.h"
#include "coordinator/ctl/output.h"
#include "dataset/build_plan.h"
#include "formats/model_files.h"
#include "proto/admin.pb.h"
#include "transport/rpc.h"

namespace stillhouse {
namespace {

constexpr absl::Duration kSubmitDeadline = absl::Seconds(60);
constexpr absl::Duration kSayEvery = absl::Seconds(2);

using Say = std::function<void(const std::string&)>;

// What is remembered of a plan's inputs: <plans>/<inputs>.json.
absl::StatusOr<BuiltPlan> RecallPlan(const std::string& memo, const std::string& folder) {
  SH_ASSIGN_OR_RETURN(const std::string text, ReadFile(memo, 1 << 20));
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("plan") || !json["plan"].is_string() ||
      !json.contains("notes") || !json["notes"].is_array()) {
    return absl::DataLossError(absl::StrCat(memo, ": damaged"));
  }
  BuiltPlan plan;
  SH_ASSIGN_OR_RETURN(plan.digest, DigestFromHex(json["plan"].get<std::string>()));
  for (const auto& note : json["notes"]) {
    if (note.is_string()) plan.notes.push_back(note.get<std::string>());
  }
  plan.path = JoinPath(folder, absl::StrCat(plan.digest.Hex(), ".plan"));
  return plan;
}

absl::Status RememberPlan(const std::string& memo, const BuiltPlan& plan) {
  const nlohmann::json json = {{"plan", plan.digest.Hex()}, {"notes", plan.notes}};
  return WriteFileAtomically(memo, json.dump() + "\n");
}

absl::StatusOr<std::shared_ptr<const Plan>> FindOrBuildPlan(const Recipe& recipe,
                                                            const Tokenizer& tokenizer,
                                                            const Say& say, std::string* path) {
  const std::string folder = JoinPath(StateFolder(recipe.output), "plans");
  SH_ASSIGN_OR_RETURN(const std::vector<SourceFile> files, FindSources(recipe.dataset.sources));
  const Digest inputs = PlanInputsDigest(files, recipe.dataset, tokenizer.Fingerprint(), kPlanSeed);
  const std::string memo = JoinPath(folder, absl::StrCat(inputs.Hex(), ".json"));
  if (absl::StatusOr<BuiltPlan> known = RecallPlan(memo, folder); known.ok()) {
    // A plan that was damaged meanwhile is built again.
    absl::StatusOr<std::shared_ptr<const Plan>> plan = OpenPlan(known->path);
    if (plan.ok() && (*plan)->digest() == known->digest) {
      *path = known->path;
      for (const std::string& note : known->notes) say(absl::StrCat("dataset: ", note));
      return plan;
    }
  }
  absl::Duration said = SystemClock().Now();
  SH_ASSIGN_OR_RETURN(
      const BuiltPlan built,
      BuildPlan(
          recipe.dataset, tokenizer,
          {.folder = folder, .seed = kPlanSeed, .progress = [&](const PlanProgress& progress) {
             if (SystemClock().Now() - said < kSayEvery) return;
             said = SystemClock().Now();
             say(absl::StrCat("dataset: ", HumanBytes(progress.bytes_done), " of ",
                              HumanBytes(progress.bytes), " tokenised, ",
                              HumanCount(static_cast<double>(progress.tokens)), " tokens"));
           }}));
  for (const std::string& note : built.notes) say(absl::StrCat("dataset: ", note));
  SH_RETURN_IF_ERROR(RememberPlan(memo, built));
  *path = built.path;
  return OpenPlan(built.path);
}

// A hub id is known by how it was written, not by where it would lie.
absl::StatusOr<ModelFiles> OpenTeacher(const TeacherRecipe& teacher) {
  absl::StatusOr<ModelFiles> model = OpenModelFiles(teacher.model);
  if (!absl::IsNotFound(model.status()) || PathExists(teacher.model)) return model;
  const absl::Status as_written = OpenModelFiles(teacher.written).status();
  if (!absl::IsNotFound(as_written)) return model;
  return absl::NotFoundError(
      absl::StrCat(as_written.message(), " (looked for at ", teacher.model, ")"));
}

pb::SubmitRequest MakeSubmitRequest(const PreparedJob& job, const std::string& key) {
  pb::SubmitRequest request;
  request.set_idempotency_key(key);
  request.set_name(job.recipe.name);
  request.set_recipe_text(job.recipe.text);
  request.set_recipe_path(job.recipe.path);
  request.set_plan(std::string(job.plan->digest().AsStringView()));
  request.set_teacher(std::string(job.teacher.AsStringView()));
  request.set_teacher_dtype(job.recipe.teacher.dtype);
  for (const SectionSpec& spec : job.sections) request.add_sections(spec.Canonical());
  for (const SectionSpec& spec : job.held_out_sections)
    request.add_held_out_sections(spec.Canonical());
  for (const std::string& name : job.first_chunk_artefacts) request.add_first_chunk_artefacts(name);
  const bool until_read = job.recipe.cache.retention == CacheRecipe::Retention::kUntilRead;
  if (until_read) request.set_cache_bytes_max(job.recipe.cache.bytes_max);
  for (uint32_t i = 0; i < job.plan->chunk_count(); ++i) {
    const PlanChunk chunk = job.plan->chunk(i);
    auto* added = request.add_chunks();
    added->set_rows(chunk.rows);
    added->set_held_out(chunk.held_out);
    if (until_read) {
      added->set_bytes_max(
          ChunkBytesMax(chunk.held_out ? job.held_out_sections : job.sections, *job.plan, i));
    }
  }
  for (const StudentRecipe& student : job.recipe.students) {
    auto* run = request.add_runs();
    run->set_name(RunName(job.recipe, student));
    run->set_student(student.name);
    run->set_folder(RunFolder(job.recipe, student, job.Inputs()));
    run->set_hash(RunHash(job.recipe, student, job.Inputs()).Hex());
    run->set_steps(student.steps);
  }
  return request;
}

}  // namespace

JobObject PreparedJob::Object() const {
  return {.name = recipe.name,
          .plan = plan->digest(),
          .teacher = teacher,
          .sections = sections,
          .held_out_sections = held_out_sections};
}

std::vector<SectionSpec> TrainingSections(const Recipe& recipe, const ModelConfig& teacher) {
  std::vector<SectionSpec> sections = {{.kind = SectionKind::kStats}};
  if (recipe.capture.sampled_draws.has_value()) {
    sections.push_back({.kind = SectionKind::kLogitsSampled,
                        .draws = static_cast<uint32_t>(*recipe.capture.sampled_draws)});
  }
  for (const TopRecipe& top : recipe.capture.top) {
    sections.push_back(
        {.kind = top.p_millionths == 0 ? SectionKind::kLogitsTopK : SectionKind::kLogitsTopP,
         .k = static_cast<uint32_t>(top.k),
         .p_millionths = static_cast<uint32_t>(top.p_millionths)});
  }
  const auto hidden_size = static_cast<uint32_t>(teacher.hidden_size);
  if (recipe.capture.hidden_last) {
    sections.push_back({.kind = SectionKind::kHiddenLast, .hidden_size = hidden_size});
  }
  for (const int64_t layer : recipe.capture.hidden_layers) {
    sections.push_back(
        {.kind = SectionKind::kHiddenLayer,
         .hidden_size = hidden_size,
         .layer = static_cast<uint32_t>(layer),
         .dtype = recipe.capture.layers_int8 ? HiddenDtype::kInt8 : HiddenDtype::kBf16});
  }
  return sections;
}

std::vector<SectionSpec> HeldOutSections(const ModelConfig& teacher) {
  return {{.kind = SectionKind::kStats},
          {.kind = SectionKind::kHiddenLast,
           .hidden_size = static_cast<uint32_t>(teacher.hidden_size)}};
}

absl::StatusOr<std::shared_ptr<const PreparedJob>> PrepareJob(const Recipe& recipe,
                                                              const Say& say) {
  auto job = std::make_shared<PreparedJob>();
  job->recipe = recipe;
  SH_ASSIGN_OR_RETURN_AT(const ModelFiles teacher, OpenTeacher(recipe.teacher), "teacher");
  job->teacher_config = teacher.config;
  SH_RETURN_IF_ERROR(CheckAgainstTeacher(recipe, teacher.config));
  SH_ASSIGN_OR_RETURN_AT(job->teacher, TeacherFingerprint(teacher, UserCacheFolder()), "teacher");
  say(absl::StrCat("teacher: ", BaseName(recipe.teacher.model), ", ",
                   HumanCount(static_cast<double>(teacher.config.ParameterCount())),
                   " parameters, ", job->teacher.ShortHex()));
  SH_ASSIGN_OR_RETURN(job->plan, FindOrBuildPlan(recipe, *teacher.tokenizer, say, &job->plan_path));
  const Plan& plan = *job->plan;
  say(absl::StrCat("dataset: ", Counted(plan.document_count(), "document"), ", ",
                   HumanCount(static_cast<double>(plan.training_rows())), " tokens to train on, ",
                   HumanCount(static_cast<double>(plan.held_out_rows())), " held out, in ",
                   Counted(plan.chunk_count(), "chunk"), "; plan ", plan.digest().ShortHex()));
  job->sections = TrainingSections(recipe, teacher.config);
  job->held_out_sections = HeldOutSections(teacher.config);
  SH_RETURN_IF_ERROR(
      CheckCacheRoom(recipe, teacher.config, plan, job->sections, job->held_out_sections));
  SH_RETURN_IF_ERROR(CheckRanks(recipe, plan));
  const auto& students = recipe.students;
  if (std::any_of(students.begin(), students.end(),
                  [](const StudentRecipe& student) { return student.init.keep.has_value(); })) {
    job->first_chunk_artefacts.push_back(InfluenceArtefactName(plan.digest()));
  }
  return job;
}

void StoreJob(CacheClient& cache, std::shared_ptr<const PreparedJob> job,
              absl::AnyInvocable<void(absl::Status)> done) {
  absl::StatusOr<std::string> bytes = ReadFile(job->plan_path);
  if (!bytes.ok()) {
    done(bytes.status());
    return;
  }
  const Digest digest = job->plan->digest();
  cache.PutObject(
      PlanObjectName(digest), std::make_shared<const std::string>(*std::move(bytes)), {},
      [&cache, job = std::move(job),
       done = std::move(done)](absl::StatusOr<StoreAck> stored) mutable {
        if (!stored.ok()) {
          done(Annotate(stored.status(), "storing the plan"));
          return;
        }
        cache.PutObject(JobObjectName(job->recipe.name),
                        std::make_shared<const std::string>(EncodeJobObject(job->Object())),
                        {.replace = true},
                        [done = std::move(done)](absl::StatusOr<StoreAck> ack) mutable {
                          done(Annotate(ack.status(), "storing the job's description"));
                        });
      });
}

void SubmitJob(RpcClient& coordinator, const PreparedJob& job, const std::string& key,
               absl::AnyInvocable<void(absl::StatusOr<Submitted>)> done) {
  coordinator.Call(
      "admin.Submit", {.body = MakeSubmitRequest(job, key).SerializeAsString(), .attachments = {}},
      {.deadline = kSubmitDeadline},
      [done = std::move(done)](absl::StatusOr<RpcMessage> answer) mutable {
        if (!answer.ok()) {
          done(Annotate(answer.status(), "submitting"));
          return;
        }
        pb::SubmitResponse response;
        if (!response.ParseFromString(answer->body)) {
          done(absl::DataLossError("submitting: the answer cannot be read"));
          return;
        }
        done(Submitted{response.resumed(), {response.notes().begin(), response.notes().end()}});
      });
}

std::string NewSubmissionKey() {
  std::random_device device;
  return absl::StrFormat("%08x%08x%08x%08x", device(), device(), device(), device());
}

}  // namespace stillhouse

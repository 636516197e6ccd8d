#include "common/status.h"
#include "coordinator/admin_view.h"
#include "coordinator/wire.h"
#include "coordinator/wire_messages.h"
#include "coordinator/wire_parse.h"
#include "proto/admin.pb.h"

namespace stillhouse {
namespace {

void JobToProto(const JobView& job, pb::JobStatus* out) {
  out->set_name(job.name);
  out->set_state(job.state);
  out->set_plan(std::string(job.plan.AsStringView()));
  out->set_teacher(std::string(job.teacher.AsStringView()));
  out->set_chunks(job.chunks);
  out->set_chunks_durable(job.chunks_durable);
  out->set_chunks_leased(job.chunks_leased);
  out->set_chunks_poisoned(job.chunks_poisoned);
  out->set_rows(job.rows);
  out->set_rows_durable(job.rows_durable);
  out->set_rows_computed(job.rows_computed);
  out->set_parts_mismatched(job.parts_mismatched);
  out->set_rows_per_s(job.rows_per_s);
  out->set_seconds_left(job.seconds_left);
  out->set_capture_seconds(job.capture_seconds);
  out->set_recipe_path(job.recipe_path);
  out->set_problem(job.problem);
  for (const std::string& spec : job.sections) out->add_sections(spec);
  for (const std::string& spec : job.held_out_sections) out->add_held_out_sections(spec);
}

absl::StatusOr<JobView> JobFromProto(const pb::JobStatus& in) {
  JobView job;
  job.name = in.name();
  job.state = in.state();
  SH_ASSIGN_OR_RETURN_AT(job.plan, DigestFromBytes(in.plan()), "plan");
  SH_ASSIGN_OR_RETURN_AT(job.teacher, DigestFromBytes(in.teacher()), "teacher");
  job.chunks = in.chunks();
  job.chunks_durable = in.chunks_durable();
  job.chunks_leased = in.chunks_leased();
  job.chunks_poisoned = in.chunks_poisoned();
  job.rows = in.rows();
  job.rows_durable = in.rows_durable();
  job.rows_computed = in.rows_computed();
  job.parts_mismatched = in.parts_mismatched();
  job.rows_per_s = in.rows_per_s();
  job.seconds_left = in.seconds_left();
  job.capture_seconds = in.capture_seconds();
  job.recipe_path = in.recipe_path();
  job.problem = in.problem();
  job.sections.assign(in.sections().begin(), in.sections().end());
  job.held_out_sections.assign(in.held_out_sections().begin(), in.held_out_sections().end());
  return job;
}

void RunToProto(const RunView& run, pb::RunStatus* out) {
  out->set_name(run.name);
  out->set_state(run.state);
  ToProto(run.last, out->mutable_last());
  if (run.best.has_value()) ToProto(*run.best, out->mutable_best());
  if (run.final.has_value()) ToProto(*run.final, out->mutable_final());
  out->set_folder(run.folder);
  out->set_exported_to(run.exported_to);
  out->set_teacher_rows_charged(run.teacher_rows_charged);
  out->set_checkpoint(run.checkpoint);
  out->set_hash(run.hash);
}

RunView RunFromProto(const pb::RunStatus& in) {
  RunView run;
  run.name = in.name();
  run.state = in.state();
  run.last = FromProto(in.last());
  if (in.has_best()) run.best = FromProto(in.best());
  if (in.has_final()) run.final = FromProto(in.final());
  run.folder = in.folder();
  run.exported_to = in.exported_to();
  run.teacher_rows_charged = in.teacher_rows_charged();
  run.checkpoint = in.checkpoint();
  run.hash = in.hash();
  return run;
}

void WorkerToProto(const WorkerView& worker, pb::WorkerStatus* out) {
  out->set_name(worker.name);
  out->set_role(worker.role);
  out->set_state(worker.state);
  out->set_host(worker.host);
  out->set_pid(worker.pid);
  out->set_holding(worker.holding);
  out->set_last_heard_ms(absl::ToInt64Milliseconds(worker.last_heard));
  out->set_rows_done(worker.rows_done);
  out->set_producer_class(worker.producer_class);
}

WorkerView WorkerFromProto(const pb::WorkerStatus& in) {
  WorkerView worker;
  worker.name = in.name();
  worker.role = in.role();
  worker.state = in.state();
  worker.host = in.host();
  worker.pid = in.pid();
  worker.holding = in.holding();
  worker.last_heard = absl::Milliseconds(in.last_heard_ms());
  worker.rows_done = in.rows_done();
  worker.producer_class = in.producer_class();
  return worker;
}

absl::StatusOr<std::string> Submit(absl::string_view body, WireContext& context) {
  SH_ASSIGN_OR_RETURN(const auto request, ParseRequest<pb::SubmitRequest>(body));
  SubmitEvent event;
  event.key = request.idempotency_key();
  event.name = request.name();
  event.recipe_path = request.recipe_path();
  event.recipe_text = request.recipe_text();
  SH_ASSIGN_OR_RETURN_AT(event.capture.plan, DigestFromBytes(request.plan()), "Submit: plan");
  SH_ASSIGN_OR_RETURN_AT(event.capture.teacher, DigestFromBytes(request.teacher()),
                         "Submit: teacher");
  event.capture.teacher_dtype = request.teacher_dtype();
  event.capture.sections.assign(request.sections().begin(), request.sections().end());
  event.capture.held_out_sections.assign(request.held_out_sections().begin(),
                                         request.held_out_sections().end());
  event.capture.first_chunk_artefacts.assign(request.first_chunk_artefacts().begin(),
                                             request.first_chunk_artefacts().end());
  for (const auto& chunk : request.chunks())
    event.chunks.push_back({chunk.rows(), chunk.held_out(), chunk.bytes_max()});
  event.retention.bytes_max = request.cache_bytes_max();
  for (const auto& run : request.runs()) {
    event.runs.push_back({run.name(), run.student(), run.folder(), run.hash(), run.steps()});
  }
  SH_ASSIGN_OR_RETURN(const SubmitAnswer answer,
                      OnSubmit(context.state, event, context.now, context.effects));
  pb::SubmitResponse response;
  response.set_job(answer.job);
  response.set_resumed(answer.resumed);
  for (const std::string& note : answer.notes) response.add_notes(note);
  return response.SerializeAsString();
}

absl::StatusOr<std::string> Get(absl::string_view body, WireContext& context) {
  SH_ASSIGN_OR_RETURN(const auto request, ParseRequest<pb::GetRequest>(body));
  SH_ASSIGN_OR_RETURN(const AdminView view, ViewState(context.state, request.name(), context.now));
  return SerializeAdminView(view);
}

absl::StatusOr<std::string> Cancel(absl::string_view body, WireContext& context) {
  SH_ASSIGN_OR_RETURN(const auto request, ParseRequest<pb::CancelRequest>(body));
  SH_RETURN_IF_ERROR(OnCancel(context.state, request.name(), context.effects));
  return pb::CancelResponse().SerializeAsString();
}

}  // namespace

std::string SerializeAdminView(const AdminView& view) {
  pb::GetResponse response;
  response.set_coordinator_incarnation(view.coordinator_incarnation);
  for (const JobView& job : view.jobs) JobToProto(job, response.add_jobs());
  for (const RunView& run : view.runs) RunToProto(run, response.add_runs());
  for (const WorkerView& worker : view.workers) WorkerToProto(worker, response.add_workers());
  return response.SerializeAsString();
}

absl::StatusOr<AdminView> ParseAdminView(absl::string_view body) {
  SH_ASSIGN_OR_RETURN(const auto response, ParseRequest<pb::GetResponse>(body));
  AdminView view;
  view.coordinator_incarnation = response.coordinator_incarnation();
  for (const pb::JobStatus& job : response.jobs()) {
    SH_ASSIGN_OR_RETURN(JobView parsed, JobFromProto(job));
    view.jobs.push_back(std::move(parsed));
  }
  for (const pb::RunStatus& run : response.runs()) view.runs.push_back(RunFromProto(run));
  for (const pb::WorkerStatus& worker : response.workers()) {
    view.workers.push_back(WorkerFromProto(worker));
  }
  return view;
}

namespace internal {

std::vector<WireMethod> AdminMethods() {
  return {{"admin.Submit", Submit}, {"admin.Get", Get}, {"admin.Cancel", Cancel}};
}

}  // namespace internal

const std::vector<WireMethod>& WireMethods() {
  static const std::vector<WireMethod>* const methods = [] {
    auto* all = new std::vector<WireMethod>(internal::WorkerMethods());
    for (auto& more : {internal::StudentMethods(), internal::AdminMethods()}) {
      all->insert(all->end(), more.begin(), more.end());
    }
    return all;
  }();
  return *methods;
}

}  // namespace stillhouse

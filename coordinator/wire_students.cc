#include <optional>

#include "common/file.h"
#include "common/status.h"
#include "coordinator/limits.h"
#include "coordinator/wire.h"
#include "coordinator/wire_messages.h"
#include "coordinator/wire_parse.h"
#include "proto/control.pb.h"

namespace stillhouse {
namespace internal {
namespace {

absl::StatusOr<std::string> StartRunMethod(absl::string_view body, WireContext& context) {
  SH_ASSIGN_OR_RETURN(const auto request, ParseRequest<pb::StartRunRequest>(body));
  StartRunEvent event{request.run(), request.incarnation(), request.host(), request.pid()};
  SH_ASSIGN_OR_RETURN(const StartRunAnswer answer,
                      OnStartRun(context.state, event, context.now, context.effects));
  const Job& job = *answer.job;
  const Run& run = *answer.run;
  pb::StartRunResponse response;
  response.set_recipe_path(job.recipe_path);
  response.set_recipe_text(job.recipe_text);
  response.set_recipe_folder(FolderOf(job.recipe_path));
  response.set_student(run.setup.student);
  response.set_plan(std::string(job.capture.plan.AsStringView()));
  response.set_teacher(std::string(job.capture.teacher.AsStringView()));
  response.set_run_epoch(run.epoch);
  response.set_run_folder(run.setup.folder);
  response.set_checkpoint(run.checkpoint);
  response.set_cache_address(context.cache_address);
  for (const std::string& spec : job.capture.sections) response.add_sections(spec);
  for (const std::string& spec : job.capture.held_out_sections) {
    response.add_held_out_sections(spec);
  }
  return response.SerializeAsString();
}

pb::ChunkState ToProto(ChunkAnswer answer) {
  switch (answer) {
    case ChunkAnswer::kPending:
      return pb::PENDING;
    case ChunkAnswer::kDurable:
      return pb::DURABLE;
    case ChunkAnswer::kPoisoned:
      return pb::POISONED;
    case ChunkAnswer::kNeedsTeacher:
      return pb::NEEDS_TEACHER;
  }
  return pb::PENDING;
}

absl::StatusOr<std::string> Want(absl::string_view body, WireContext& context) {
  SH_ASSIGN_OR_RETURN(const auto request, ParseRequest<pb::WantRequest>(body));
  WantEvent event;
  event.run = request.run();
  event.run_epoch = request.run_epoch();
  for (const pb::WantRequest::Item& item : request.items()) {
    event.items.emplace_back(item.chunk(), absl::Milliseconds(item.within_ms()));
  }
  SH_ASSIGN_OR_RETURN(const WantAnswerRow answer,
                      OnWant(context.state, event, context.now, context.effects));
  pb::WantResponse response;
  bool all_durable = true;
  for (const ChunkAnswer state : answer.states) {
    response.add_states(ToProto(state));
    all_durable &= state == ChunkAnswer::kDurable;
  }
  if (!all_durable) response.set_retry_ms(absl::ToInt64Milliseconds(kWantRetry));
  response.set_cancelled(answer.cancelled);
  return response.SerializeAsString();
}

absl::StatusOr<std::string> Report(absl::string_view body, WireContext& context) {
  SH_ASSIGN_OR_RETURN(const auto request, ParseRequest<pb::ReportRequest>(body));
  SH_ASSIGN_OR_RETURN(const bool cancelled,
                      OnReport(context.state, request.run(), request.run_epoch(),
                               FromProto(request), context.now, context.effects));
  pb::ReportResponse response;
  response.set_cancelled(cancelled);
  return response.SerializeAsString();
}

absl::StatusOr<std::string> CommitCheckpoint(absl::string_view body, WireContext& context) {
  SH_ASSIGN_OR_RETURN(const auto request, ParseRequest<pb::CommitCheckpointRequest>(body));
  SH_RETURN_IF_ERROR(OnCommitCheckpoint(context.state, request.run(), request.run_epoch(),
                                        request.step(), request.folder(), context.effects));
  return pb::CommitCheckpointResponse().SerializeAsString();
}

}  // namespace

std::vector<WireMethod> StudentMethods() {
  return {{"control.StartRun", StartRunMethod},
          {"control.Want", Want},
          {"control.Report", Report},
          {"control.CommitCheckpoint", CommitCheckpoint}};
}

}  // namespace internal
}  // namespace stillhouse

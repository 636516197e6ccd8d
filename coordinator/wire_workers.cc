#include <utility>

#include "common/status.h"
#include "coordinator/limits.h"
#include "coordinator/wire.h"
#include "coordinator/wire_parse.h"
#include "proto/control.pb.h"

namespace stillhouse {
namespace internal {
namespace {

GrantRef FromProto(const pb::GrantId& id) { return {id.job(), id.chunk(), id.epoch()}; }

void ToProto(const GrantRef& grant, pb::GrantId* id) {
  id->set_job(grant.job);
  id->set_chunk(grant.chunk);
  id->set_epoch(grant.epoch);
}

absl::StatusOr<std::string> Register(absl::string_view body, WireContext& context) {
  SH_ASSIGN_OR_RETURN(const auto request, ParseRequest<pb::RegisterRequest>(body));
  if (request.role() != pb::RegisterRequest::TEACHER) {
    return absl::InvalidArgumentError(
        "only teacher workers register; a student's process begins with control.StartRun");
  }
  RegisterEvent event;
  event.worker = {request.worker(), request.incarnation()};
  event.host = request.host();
  event.pid = request.pid();
  SH_ASSIGN_OR_RETURN_AT(event.teacher, DigestFromBytes(request.teacher()), "Register: teacher");
  event.teacher_dtype = request.teacher_dtype();
  event.producer_class = request.producer_class();
  event.state = request.state();
  for (const pb::GrantId& id : request.held()) event.held.push_back(FromProto(id));
  SH_ASSIGN_OR_RETURN(const std::vector<GrantRef> kept,
                      OnRegister(context.state, event, context.now, context.effects));
  pb::RegisterResponse response;
  response.set_coordinator_incarnation(context.state.incarnation);
  response.set_heartbeat_ms(absl::ToInt64Milliseconds(kHeartbeatPeriod));
  response.set_lease_ms(absl::ToInt64Milliseconds(kLeaseLength));
  for (const GrantRef& grant : kept) ToProto(grant, response.add_kept());
  return response.SerializeAsString();
}

absl::StatusOr<std::string> Heartbeat(absl::string_view body, WireContext& context) {
  SH_ASSIGN_OR_RETURN(const auto request, ParseRequest<pb::HeartbeatRequest>(body));
  HeartbeatEvent event;
  event.worker = {request.worker(), request.incarnation()};
  event.state = request.state();
  for (const pb::HeartbeatRequest::Progress& progress : request.progress()) {
    event.progress.push_back({FromProto(progress.grant()), progress.rows_done(), progress.steps()});
  }
  const HeartbeatAnswer answer = OnHeartbeat(context.state, event, context.now, context.effects);
  pb::HeartbeatResponse response;
  response.set_coordinator_incarnation(context.state.incarnation);
  response.set_unknown_worker(answer.unknown_worker);
  for (const GrantRef& grant : answer.cancelled) ToProto(grant, response.add_cancelled());
  return response.SerializeAsString();
}

absl::StatusOr<std::string> LeaseChunk(absl::string_view body, WireContext& context) {
  SH_ASSIGN_OR_RETURN(const auto request, ParseRequest<pb::LeaseRequest>(body));
  const LeaseAnswer answer =
      OnLease(context.state, {{request.worker(), request.incarnation()}, request.sequence()},
              context.now, context.effects);
  pb::LeaseResponse response;
  response.set_unknown_worker(answer.unknown_worker);
  response.set_all_done(answer.all_done);
  response.set_leave(answer.leave);
  if (!answer.grant.has_value()) {
    response.set_retry_ms(absl::ToInt64Milliseconds(kLeaseRetry));
    return response.SerializeAsString();
  }
  response.set_granted(true);
  ToProto(*answer.grant, response.mutable_grant());
  const Job& job = *answer.job;
  response.set_plan(std::string(job.capture.plan.AsStringView()));
  const bool held_out = job.chunks.at(answer.grant->chunk).spec.held_out;
  for (const std::string& spec : held_out ? job.capture.held_out_sections : job.capture.sections) {
    response.mutable_sections()->add_canonical(spec);
  }
  response.set_lease_ms(absl::ToInt64Milliseconds(kLeaseLength));
  return response.SerializeAsString();
}

absl::StatusOr<std::string> Done(absl::string_view body, WireContext& context) {
  SH_ASSIGN_OR_RETURN(const auto request, ParseRequest<pb::DoneRequest>(body));
  DoneEvent event;
  event.worker = {request.worker(), request.incarnation()};
  event.grant = FromProto(request.grant());
  event.rows_computed = request.rows_computed();
  event.parts_mismatched = request.parts_mismatched();
  SH_RETURN_IF_ERROR(OnDone(context.state, event, context.now, context.effects));
  return pb::DoneResponse().SerializeAsString();
}

absl::StatusOr<std::string> Failed(absl::string_view body, WireContext& context) {
  SH_ASSIGN_OR_RETURN(const auto request, ParseRequest<pb::FailedRequest>(body));
  FailedEvent event;
  event.worker = {request.worker(), request.incarnation()};
  event.grant = FromProto(request.grant());
  event.reason = request.reason();
  event.chunk_at_fault = request.chunk_at_fault();
  event.returned = request.returned();
  SH_RETURN_IF_ERROR(OnFailed(context.state, event, context.now, context.effects));
  return pb::FailedResponse().SerializeAsString();
}

}  // namespace

std::vector<WireMethod> WorkerMethods() {
  return {{"control.Register", Register},
          {"control.Heartbeat", Heartbeat},
          {"control.Lease", LeaseChunk},
          {"control.Done", Done},
          {"control.Failed", Failed}};
}

}  // namespace internal
}  // namespace stillhouse

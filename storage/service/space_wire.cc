#include "storage/service/space_wire.h"

#include "common/status.h"
#include "proto/cache.pb.h"
#include "storage/service/cache_wire.h"
#include "transport/rpc.h"

namespace stillhouse {
namespace {

constexpr absl::Duration kSpaceDeadline = absl::Minutes(10);

}  // namespace

absl::StatusOr<SpaceRequest> FromProto(const pb::SpaceRequest& message) {
  SpaceRequest request;
  request.what = message.what() == pb::SpaceRequest::REMOVE    ? SpaceRequest::What::kRemove
                 : message.what() == pb::SpaceRequest::COLLECT ? SpaceRequest::What::kCollect
                                                               : SpaceRequest::What::kRelease;
  request.job = message.job();
  if (!message.teacher().empty()) {
    SH_ASSIGN_OR_RETURN(request.teacher, DigestFromBytes(message.teacher()));
  }
  for (const std::string& text : message.sections()) {
    SH_ASSIGN_OR_RETURN(request.sections.emplace_back(), ParseSectionSpec(text));
  }
  request.chunks.assign(message.chunks().begin(), message.chunks().end());
  request.dry_run = message.dry_run();
  if (message.live_share_max() > 0) request.live_share_max = message.live_share_max();
  const bool named =
      !request.job.empty() || request.teacher.has_value() || !request.sections.empty();
  if (request.what == SpaceRequest::What::kRemove && !named) {
    return absl::InvalidArgumentError("a removal names a job, a teacher or sections");
  }
  if (request.what == SpaceRequest::What::kRelease && request.job.empty()) {
    return absl::InvalidArgumentError("a release names a job");
  }
  return request;
}

void ToProto(const SpaceRequest& request, pb::SpaceRequest* message) {
  switch (request.what) {
    case SpaceRequest::What::kRemove:
      message->set_what(pb::SpaceRequest::REMOVE);
      break;
    case SpaceRequest::What::kCollect:
      message->set_what(pb::SpaceRequest::COLLECT);
      break;
    case SpaceRequest::What::kRelease:
      message->set_what(pb::SpaceRequest::RELEASE);
      break;
  }
  message->set_job(request.job);
  if (request.teacher.has_value()) {
    message->set_teacher(std::string(request.teacher->AsStringView()));
  }
  for (const SectionSpec& spec : request.sections) message->add_sections(spec.Canonical());
  for (const uint32_t chunk : request.chunks) message->add_chunks(chunk);
  message->set_dry_run(request.dry_run);
  message->set_live_share_max(request.live_share_max);
}

SpaceResult FromProto(const pb::SpaceResponse& message) {
  SpaceResult result;
  result.objects.assign(message.objects().begin(), message.objects().end());
  result.object_count = message.object_count();
  result.object_bytes = message.object_bytes();
  result.sections = message.sections();
  result.parts = message.parts();
  result.part_bytes = message.part_bytes();
  result.segments_freed = message.segments_freed();
  result.bytes_copied = message.bytes_copied();
  result.bytes_freed = message.bytes_freed();
  result.bytes_used = message.bytes_used();
  return result;
}

void ToProto(const SpaceResult& result, pb::SpaceResponse* message) {
  for (const std::string& name : result.objects) message->add_objects(name);
  message->set_object_count(result.object_count);
  message->set_object_bytes(result.object_bytes);
  message->set_sections(result.sections);
  message->set_parts(result.parts);
  message->set_part_bytes(result.part_bytes);
  message->set_segments_freed(result.segments_freed);
  message->set_bytes_copied(result.bytes_copied);
  message->set_bytes_freed(result.bytes_freed);
  message->set_bytes_used(result.bytes_used);
}

void CallSpace(RpcClient& rpc, const SpaceRequest& request,
               absl::AnyInvocable<void(absl::StatusOr<SpaceResult>)> done) {
  pb::SpaceRequest message;
  ToProto(request, &message);
  rpc.Call("cache.Space", MakeMessage(message), {.deadline = kSpaceDeadline},
           [done = std::move(done)](absl::StatusOr<RpcMessage> answer) mutable {
             if (!answer.ok()) return done(answer.status());
             const auto response = ParseMessage<pb::SpaceResponse>(*answer);
             if (!response.ok()) return done(response.status());
             done(FromProto(*response));
           });
}

}  // namespace stillhouse

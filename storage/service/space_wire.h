// A SpaceRequest and its result between messages and plain values.
#pragma once

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "storage/service/cache_space.h"

namespace stillhouse {

class RpcClient;

namespace pb {
class SpaceRequest;
class SpaceResponse;
}  // namespace pb

// InvalidArgument names what is malformed.
absl::StatusOr<SpaceRequest> FromProto(const pb::SpaceRequest& message);
void ToProto(const SpaceRequest& request, pb::SpaceRequest* message);
SpaceResult FromProto(const pb::SpaceResponse& message);
void ToProto(const SpaceResult& result, pb::SpaceResponse* message);

// "cache.Space" of a server. Not for people, who wait as long as it takes: after ten minutes
// without an answer it is to be asked again.
void CallSpace(RpcClient& rpc, const SpaceRequest& request,
               absl::AnyInvocable<void(absl::StatusOr<SpaceResult>)> done);

}  // namespace stillhouse

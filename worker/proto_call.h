// CallProto: one remote call whose request and answer are protobuf messages.
//
// A template, so that this header names no protobuf type: only the .cc files of worker/ do.
#pragma once

#include <string>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "transport/rpc.h"

namespace stillhouse {

// Calls `done(StatusOr<Response>)` once, on the executor of `rpc`. An answer that cannot be parsed
// is DataLoss.
template <typename Response, typename Request, typename Done>
void CallProto(RpcClient& rpc, const std::string& method, const Request& request,
               const RpcClient::CallOptions& options, Done done) {
  RpcMessage message;
  message.body = request.SerializeAsString();
  rpc.Call(method, std::move(message), options,
           [method, done = std::move(done)](absl::StatusOr<RpcMessage> answer) mutable {
             if (!answer.ok()) {
               done(absl::StatusOr<Response>(answer.status()));
               return;
             }
             Response response;
             if (!response.ParseFromString(answer->body)) {
               done(absl::StatusOr<Response>(
                   absl::DataLossError(absl::StrCat(method, ": the answer cannot be parsed"))));
               return;
             }
             done(absl::StatusOr<Response>(std::move(response)));
           });
}

}  // namespace stillhouse

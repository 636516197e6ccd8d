// Wire: every control.* and admin.* method, from bytes to the State's functions and back.
//
// Owner: CoordinatorServer. Pure but for the State it changes; protobuf stays in wire*.cc.
#pragma once

#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "coordinator/state.h"

namespace stillhouse {

struct WireContext {
  State& state;
  const std::string& cache_address;  // told to students
  absl::Duration now;
  Effects& effects;
};

struct WireMethod {
  const char* name;  // "control.Lease"
  // The answer's body. InvalidArgument when `body` is not such a request.
  absl::StatusOr<std::string> (*handle)(absl::string_view body, WireContext& context);
};
// All methods but admin.Shutdown, which the server answers itself.
const std::vector<WireMethod>& WireMethods();

namespace internal {
std::vector<WireMethod> WorkerMethods();
std::vector<WireMethod> StudentMethods();
std::vector<WireMethod> AdminMethods();
}  // namespace internal

}  // namespace stillhouse

// CallTorch: LibTorch's exceptions end here and become Status.
#pragma once

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

namespace stillhouse {

// Runs `call`; what it throws becomes a one-line Status: ResourceExhausted when memory ran out,
// Internal otherwise.
absl::Status CallTorch(absl::FunctionRef<void()> call);

}  // namespace stillhouse

#include "model/torch_status.h"

#include <exception>
#include <new>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "c10/util/Exception.h"

namespace stillhouse {
namespace {

// LibTorch appends stack traces; a user wants the first line.
absl::string_view FirstLine(absl::string_view text) { return text.substr(0, text.find('\n')); }

}  // namespace

absl::Status CallTorch(absl::FunctionRef<void()> call) {
  try {
    call();
    return absl::OkStatus();
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("LibTorch: out of memory");
  } catch (const c10::OutOfMemoryError& error) {
    return absl::ResourceExhaustedError(
        absl::StrCat("LibTorch: ", FirstLine(error.what_without_backtrace())));
  } catch (const c10::Error& error) {
    const absl::string_view line = FirstLine(error.what_without_backtrace());
    // The CPU allocator reports a failed allocation as a plain Error.
    if (line.find("not enough memory") != absl::string_view::npos ||
        line.find("can't allocate memory") != absl::string_view::npos) {
      return absl::ResourceExhaustedError(absl::StrCat("LibTorch: ", line));
    }
    return absl::InternalError(absl::StrCat("LibTorch: ", line));
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("LibTorch: ", FirstLine(error.what())));
  }
}

}  // namespace stillhouse

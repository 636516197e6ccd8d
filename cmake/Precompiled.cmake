# Headers that most files parse, precompiled once for each kind of target:
#   core, core_test, torch, torch_test
# `make lint` compiles without them, so a file that leaves out an include is still found.
# nlohmann/json is not among them: what it defines per file is then compiled in every file, which takes
# longer than reading it where it is used.
set(_core <algorithm> <functional> <map> <memory> <optional> <string> <utility> <vector>
    <absl/container/flat_hash_map.h> <absl/functional/any_invocable.h> <absl/status/statusor.h>
    <absl/strings/str_cat.h> <absl/strings/str_format.h> <absl/time/time.h> <absl/types/span.h>)
set(_test <gmock/gmock.h> <gtest/gtest.h>)
set(SH_PRECOMPILED_core ${_core})
set(SH_PRECOMPILED_core_test ${_core} ${_test})
set(SH_PRECOMPILED_torch ${_core} <ATen/core/Tensor.h>)
set(SH_PRECOMPILED_torch_test ${_core} ${_test} <ATen/core/Tensor.h>)
set(SH_TORCH_LIBRARIES model teacher_pool student)

# Which headers a target that uses `used` (our libraries) may take: sets `kind` to core or torch.
function(sh_pch_kind kind)
  set(result core)
  foreach(library IN LISTS ARGN)
    if(library IN_LIST SH_TORCH_LIBRARIES)
      set(result torch)
    endif()
  endforeach()
  set(${kind} ${result} PARENT_SCOPE)
endfunction()

# sh_precompile(TARGET KIND SOURCES…). A source with compile options of its own cannot share them.
function(sh_precompile target kind)
  if(NOT STILLHOUSE_PCH)
    return()
  endif()
  if(NOT TARGET sh_headers_${kind})
    file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/headers_${kind}.cc CONTENT "")
    add_library(sh_headers_${kind} OBJECT ${PROJECT_BINARY_DIR}/headers_${kind}.cc)
    target_link_libraries(sh_headers_${kind} PRIVATE sh_options)
    if(kind MATCHES "torch")
      target_link_libraries(sh_headers_${kind} PRIVATE sh::torch)
    endif()
    if(kind MATCHES "test")
      target_link_libraries(sh_headers_${kind} PRIVATE sh_test_options GTest::gmock GTest::gtest)
    endif()
    target_precompile_headers(sh_headers_${kind} PRIVATE ${SH_PRECOMPILED_${kind}})
  endif()
  target_precompile_headers(${target} REUSE_FROM sh_headers_${kind})
  foreach(source IN LISTS ARGN)
    get_source_file_property(options ${source} COMPILE_OPTIONS)
    if(options)
      set_source_files_properties(${source} PROPERTIES SKIP_PRECOMPILE_HEADERS ON)
    endif()
  endforeach()
endfunction()

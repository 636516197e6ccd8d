# sh_library, sh_program, sh_test: one way to declare each, with the layer check and the link test.
include(Layers)
include(Precompiled)

add_library(sh_options INTERFACE)
target_compile_features(sh_options INTERFACE cxx_std_20)
target_include_directories(sh_options INTERFACE ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR}/generated)
target_compile_options(sh_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wno-unused-parameter -Wno-missing-field-initializers>)
# GCC 12 sees overruns in std::string that are none, once the header comes precompiled.
foreach(warning array-bounds restrict stringop-overflow stringop-overread)
  target_compile_options(sh_options INTERFACE $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-${warning}>)
endforeach()
if(STILLHOUSE_WERROR)
  target_compile_options(sh_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()

# Tests are compiled once and run for seconds: a third of the time to compile them is saved.
add_library(sh_test_options INTERFACE)
target_compile_options(sh_test_options INTERFACE $<$<COMPILE_LANG_AND_ID:CXX,GNU,Clang>:$<$<CONFIG:RelWithDebInfo>:-O1>>)

# sh_library(NAME SOURCES … USES <our libraries> LINKS <foreign, private> PUBLIC_LINKS <foreign, in headers>)
function(sh_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;USES;LINKS;PUBLIC_LINKS" ${ARGN})
  if(NOT DEFINED SH_EDGES_${name})
    message(FATAL_ERROR "${name}: no row in cmake/Layers.cmake")
  endif()
  foreach(used IN LISTS ARG_USES)
    if(NOT used IN_LIST SH_EDGES_${name})
      message(FATAL_ERROR "${name} may not use ${used}: see cmake/Layers.cmake")
    endif()
  endforeach()
  add_library(sh_${name} STATIC ${ARG_SOURCES})
  list(TRANSFORM ARG_USES PREPEND sh_)
  target_link_libraries(sh_${name} PUBLIC sh_options ${ARG_USES} ${ARG_PUBLIC_LINKS} PRIVATE ${ARG_LINKS})
  if(NOT name STREQUAL "proto")  # generated: it includes nothing of these
    sh_pch_kind(kind ${name})
    sh_precompile(sh_${name} ${kind} ${ARG_SOURCES})
  endif()
  # Link test: every object of the library against nothing but what it declares.
  if(STILLHOUSE_LINK_TESTS)
    file(CONFIGURE OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/${name}_link_main.cc CONTENT "int main() {}\n")
    add_executable(link_${name} ${CMAKE_CURRENT_BINARY_DIR}/${name}_link_main.cc)
    target_link_options(link_${name} PRIVATE "LINKER:--whole-archive,$<TARGET_FILE:sh_${name}>,--no-whole-archive")
    target_link_libraries(link_${name} PRIVATE sh_options ${ARG_USES} ${ARG_PUBLIC_LINKS} ${ARG_LINKS})
    add_dependencies(link_${name} sh_${name})
    set_target_properties(link_${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/link_tests)
    add_test(NAME link_${name} COMMAND link_${name})
    set_tests_properties(link_${name} PROPERTIES LABELS layering)
  endif()
endfunction()

# sh_program(NAME SOURCES … USES … LINKS … [LIBEXEC]): users' programs go to bin, the others to libexec.
function(sh_program name)
  cmake_parse_arguments(ARG "LIBEXEC" "" "SOURCES;USES;LINKS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  sh_pch_kind(kind ${ARG_USES})
  sh_precompile(${name} ${kind} ${ARG_SOURCES})
  list(TRANSFORM ARG_USES PREPEND sh_)
  target_link_libraries(${name} PRIVATE sh_options ${ARG_USES} ${ARG_LINKS})
  set(folder bin)
  if(ARG_LIBEXEC)
    set(folder libexec/stillhouse)
  endif()
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/${folder})
endfunction()

# sh_test(NAME SOURCES … USES … LINKS … LABELS … [TIMEOUT s] [ARGS …] [PROGRAMS targets it runs]): one
# GoogleTest program, one ctest entry.
function(sh_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;USES;LINKS;LABELS;ARGS;PROGRAMS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  sh_pch_kind(kind ${ARG_USES})
  sh_precompile(${name} ${kind}_test ${ARG_SOURCES})
  list(TRANSFORM ARG_USES PREPEND sh_)
  target_link_libraries(${name} PRIVATE sh_options sh_test_options ${ARG_USES} ${ARG_LINKS} GTest::gmock
                        GTest::gtest_main)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
  target_compile_definitions(${name} PRIVATE
    SH_TEST_SOURCE_DIR="${PROJECT_SOURCE_DIR}" SH_TEST_BUILD_DIR="${PROJECT_BINARY_DIR}"
    SH_TEST_DEPS_DIR="${STILLHOUSE_DEPS_DIR}")
  if(ARG_PROGRAMS)
    add_dependencies(${name} ${ARG_PROGRAMS})
  endif()
  add_test(NAME ${name} COMMAND ${name} ${ARG_ARGS})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 600)  # ends what hangs; under a sanitizer on a busy machine a test may take minutes
  endif()
  if(NOT ARG_LABELS)
    set(ARG_LABELS fast)
  endif()
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS}")
endfunction()

# sh_bench(NAME SOURCES … USES … LINKS …): one google-benchmark program in bench/.
function(sh_bench name)
  cmake_parse_arguments(ARG "" "" "SOURCES;USES;LINKS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  list(TRANSFORM ARG_USES PREPEND sh_)
  target_link_libraries(${name} PRIVATE sh_options ${ARG_USES} ${ARG_LINKS} benchmark::benchmark_main)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bench)
endfunction()

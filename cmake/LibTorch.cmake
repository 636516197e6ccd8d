# LibTorch from the PyTorch wheel, as imported targets of our own.
#
# find_package(Torch) fails where nvcc is missing, probes for a GPU where it is not, and makes a
# protobuf::libprotobuf that links nothing. Torch headers also carry protobuf 3.13, so no file of ours
# sees both torch and protobuf.
#
#   sh::torch       the CPU library (libtorch_cpu, libc10)
set(_torch_glob ${STILLHOUSE_DEPS_DIR}/venv/lib/python3*/site-packages/torch)
file(GLOB _torch_candidates ${_torch_glob})
set(STILLHOUSE_TORCH_DIR "" CACHE PATH "The torch folder of a PyTorch installation (2.7 or newer)")
if(STILLHOUSE_TORCH_DIR)
  set(_torch ${STILLHOUSE_TORCH_DIR})
elseif(_torch_candidates)
  list(GET _torch_candidates 0 _torch)
else()
  message(FATAL_ERROR "no LibTorch: run `make deps`, or give -DSTILLHOUSE_TORCH_DIR=…/site-packages/torch")
endif()
if(NOT EXISTS ${_torch}/lib/libtorch_cpu.so)
  message(FATAL_ERROR "no LibTorch in ${_torch}: lib/libtorch_cpu.so is missing")
endif()
message(STATUS "LibTorch: ${_torch}")

add_library(sh_torch_c10 SHARED IMPORTED)
set_target_properties(sh_torch_c10 PROPERTIES IMPORTED_LOCATION ${_torch}/lib/libc10.so)
add_library(sh_torch_cpu SHARED IMPORTED)
set_target_properties(sh_torch_cpu PROPERTIES IMPORTED_LOCATION ${_torch}/lib/libtorch_cpu.so)
add_library(sh_torch INTERFACE)
target_include_directories(sh_torch SYSTEM INTERFACE ${_torch}/include ${_torch}/include/torch/csrc/api/include)
# libtorch_cpu finds libcudart and libcupti through its own run path.
target_link_options(sh_torch INTERFACE -Wl,--allow-shlib-undefined)
find_package(Threads REQUIRED)
target_link_libraries(sh_torch INTERFACE -Wl,--no-as-needed sh_torch_cpu -Wl,--as-needed sh_torch_c10 Threads::Threads)
add_library(sh::torch ALIAS sh_torch)

# The OpenMP runtime that libtorch_cpu itself uses, so that a process has one pool of threads. Both
# share the name libgomp.so.1: where the wheel has none, the system's serves.
add_library(sh_torch_openmp INTERFACE)
if(EXISTS ${_torch}/lib/libgomp.so.1)
  target_link_libraries(sh_torch_openmp INTERFACE ${_torch}/lib/libgomp.so.1)
else()
  target_link_libraries(sh_torch_openmp INTERFACE gomp)
endif()
add_library(sh::torch_openmp ALIAS sh_torch_openmp)

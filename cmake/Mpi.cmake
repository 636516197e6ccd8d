# MPI where it is found. The user's MPI is the cluster's: only sharding links it.
#
# Sets SH_MPI to ON or OFF; where ON, sh::mpi is the library, and SH_MPIRUN the words that start ranks on
# this machine for tests (-n RANKS PROGRAM follow), SH_MPIRUN_ENVIRONMENT what its environment needs, and
# SH_MPIRUN_LOCAL the words for students, which take as long as they take.
option(STILLHOUSE_MPI "Build the MPI communicator where an MPI is found" ON)
option(STILLHOUSE_REQUIRE_MPI "Fail when MPI is not found" OFF)
set(SH_MPI OFF)
if(STILLHOUSE_MPI)
  set(MPI_CXX_SKIP_MPICXX TRUE)  # the C interface only
  find_package(MPI QUIET COMPONENTS CXX)
  if(MPI_CXX_FOUND)
    add_library(sh_mpi INTERFACE)
    target_link_libraries(sh_mpi INTERFACE MPI::MPI_CXX)
    add_library(sh::mpi ALIAS sh_mpi)
    set(SH_MPI ON)
    set(SH_MPIRUN ${MPIEXEC_EXECUTABLE})
    set(SH_MPIRUN_LOCAL ${MPIEXEC_EXECUTABLE})
    set(SH_MPIRUN_ENVIRONMENT "")
    execute_process(COMMAND ${MPIEXEC_EXECUTABLE} --version OUTPUT_VARIABLE _mpirun ERROR_QUIET)
    if(_mpirun MATCHES "Open ?MPI|OpenRTE")
      # More ranks than cores, on this machine alone. What hangs is ended.
      list(APPEND SH_MPIRUN --oversubscribe --timeout 300 --mca mpi_yield_when_idle 1 --mca btl self,vader
           --mca oob_tcp_if_include lo)
      # Ranks have threads of their own, which a binding to one core would stack on it.
      list(APPEND SH_MPIRUN_LOCAL --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 --mca btl self,vader
           --mca oob_tcp_if_include lo)
      # OpenMPI asks root for both; CI containers run as root.
      set(SH_MPIRUN_ENVIRONMENT OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1)
    endif()
  endif()
endif()
if(SH_MPI)
  message(STATUS "MPI: ${MPI_CXX_VERSION}, ${MPIEXEC_EXECUTABLE}")
else()
  message(STATUS "MPI: not built")
endif()
if(STILLHOUSE_REQUIRE_MPI AND NOT SH_MPI)
  message(FATAL_ERROR "STILLHOUSE_REQUIRE_MPI is on, but MPI was not found")
endif()

// The main of a gtest program whose ranks run under one mpirun.
#pragma once

#include <unistd.h>

#include <cstdio>
#include <string>

#include "gtest/gtest.h"
#include "sharding/mpi_world.h"

namespace stillhouse {

inline constexpr absl::Duration kMpiTestDeadline = absl::Minutes(2);

// Joins as `world`, which the tests use, runs them, and meets the other ranks at the end. A rank
// whose tests fail leaves at once: the others are not waited for.
inline int RunMpiTests(int argc, char** argv, MpiWorld** world) {
  testing::InitGoogleTest(&argc, argv);
  auto joined = MpiWorld::Init();
  if (!joined.ok()) {
    std::fprintf(stderr, "%s\n", joined.status().ToString().c_str());
    return 1;
  }
  *world = joined->get();
  if (RUN_ALL_TESTS() != 0) _exit(1);
  const absl::Status closed = (*world)->Close(kMpiTestDeadline);
  if (closed.ok()) return 0;
  std::fprintf(stderr, "%s\n", closed.ToString().c_str());
  _exit(1);
}

}  // namespace stillhouse

// The conformance suite on the ranks of an mpirun: every rank is this program and runs all cases.
#include <unistd.h>

#include <cstdio>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "sharding/mpi_world.h"
#include "tests/sharding/conformance.h"

namespace stillhouse {
namespace {

constexpr absl::Duration kDeadline = absl::Minutes(2);
MpiWorld* world = nullptr;

class MpiConformanceTest : public testing::TestWithParam<std::tuple<size_t, ConformanceCase>> {};

TEST_P(MpiConformanceTest, Holds) {
  const size_t piece_bytes = std::get<0>(GetParam());
  MessageOptions options = {.deadline = kDeadline};
  if (piece_bytes > 0) options.piece_bytes = piece_bytes;
  auto communicator = world->MakeCommunicator(options);
  ASSERT_TRUE(communicator.ok()) << communicator.status();
  std::get<1>(GetParam()).run(**communicator, {.large = piece_bytes == 0});
}

// In pieces as they come, and in ones so small that MPI sends them at once.
INSTANTIATE_TEST_SUITE_P(All, MpiConformanceTest,
                         testing::Combine(testing::Values(0, 2048),
                                          testing::ValuesIn(ConformanceCases())),
                         [](const auto& info) {
                           return absl::StrCat(std::get<1>(info.param).name, "Pieces",
                                               std::get<0>(info.param));
                         });

int Run(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  auto joined = MpiWorld::Init();
  if (!joined.ok()) {
    std::fprintf(stderr, "%s\n", joined.status().ToString().c_str());
    return 1;
  }
  world = joined->get();
  if (RUN_ALL_TESTS() != 0) _exit(1);  // the others are not waited for
  const absl::Status closed = world->Close(kDeadline);
  if (closed.ok()) return 0;
  std::fprintf(stderr, "%s\n", closed.ToString().c_str());
  _exit(1);
}

}  // namespace
}  // namespace stillhouse

int main(int argc, char** argv) { return stillhouse::Run(argc, argv); }

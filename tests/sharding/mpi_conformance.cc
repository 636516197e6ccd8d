// The conformance suite on the ranks of an mpirun: every rank is this program and runs all cases.
#include <tuple>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/sharding/conformance.h"
#include "tests/sharding/mpi_main.h"

namespace stillhouse {
namespace {

MpiWorld* world = nullptr;

class MpiConformanceTest : public testing::TestWithParam<std::tuple<size_t, ConformanceCase>> {};

TEST_P(MpiConformanceTest, Holds) {
  const size_t piece_bytes = std::get<0>(GetParam());
  MessageOptions options = {.deadline = kMpiTestDeadline};
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

}  // namespace
}  // namespace stillhouse

int main(int argc, char** argv) { return stillhouse::RunMpiTests(argc, argv, &stillhouse::world); }

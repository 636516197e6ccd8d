// What every Communicator must do, one case after another: run by the ranks of one process for the
// thread, message and NCCL communicators, and by the processes of an mpirun for MPI.
//
// All ranks run the same cases in the same order. A failed expectation is GoogleTest's, on the rank
// where it failed.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "sharding/communicator.h"

namespace stillhouse {

struct ConformanceTraits {
  bool reduces_bf16 = true;  // else it says Unimplemented
  bool large = true;         // off where small pieces make thousands of messages of it
};

struct ConformanceCase {
  std::string name;
  std::function<void(Communicator&, const ConformanceTraits&)> run;
};

const std::vector<ConformanceCase>& ConformanceCases();

// Runs `body` for every rank on a thread of its own.
void OnEveryRank(std::vector<std::unique_ptr<Communicator>> communicators,
                 const std::function<void(Communicator&)>& body);

// Value `index` of rank `rank`, with exponents that differ, so that another order of adding shows.
float ConformanceValue(int rank, size_t index);

}  // namespace stillhouse

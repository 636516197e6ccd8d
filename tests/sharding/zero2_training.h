// A made-up training for tests of Zero2: gradients are pure functions of step, rank, micro-batch
// and place, so that every rank can work out what all of them must come to.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "sharding/bucket_plan.h"
#include "sharding/communicator.h"
#include "sharding/zero2.h"

namespace stillhouse {

struct Training {
  std::vector<std::pair<std::string, size_t>> parameters;
  std::vector<int> micro_batches;  // of each rank
  size_t bucket_elements = 4096;
  std::vector<size_t> frozen;
  DType wire = DType::kF32;
  DType weights = DType::kF32;
  int steps = 3;
  double clip = 0;
  bool tied = false;      // the last parameter is begun first, and gets two contributions
  bool shuffled = false;  // every rank completes its gradients in an order of its own
  // That rank's first gradient of that step is not a number; -1: none.
  int nan_rank = -1, nan_step = 1;

  int ranks() const { return static_cast<int>(micro_batches.size()); }
};

// Odd and prime sizes, one larger than a bucket, some of one element.
std::vector<std::pair<std::string, size_t>> OddParameters();

struct Trained {
  std::vector<float> weights;  // the whole flat buffer, as the forward pass reads it
  std::vector<float> masters;  // of this rank's shard
  std::vector<double> norms;   // of each step
  std::vector<bool> skipped;
  double value = 0;  // the sum over ranks of rank + 1, of the last step
  Zero2::Memory memory;
};

// One rank's part. Errors of the communicator are returned.
absl::StatusOr<Trained> TrainRank(const Training& training, Communicator& communicator);
// The same on threads; aborts on errors.
std::vector<Trained> TrainOnThreads(const Training& training);

// The masters of the whole flat buffer after the training, in plain loops: gradients of a
// micro-batch added over ranks in order (rounded to bf16 first where they travel so), micro-batches
// in order, AdamW element by element. REQUIRES: no clipping.
std::vector<float> PlainMasters(const Training& training);

}  // namespace stillhouse

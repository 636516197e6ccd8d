// A body on as many threads as there are ranks, each with its communicator.
#pragma once

#include <thread>
#include <vector>

#include "sharding/communicator.h"

namespace stillhouse {

template <typename Body>
void OnRanks(int ranks, Body body) {
  auto communicators = MakeThreadCommunicators(ranks, absl::Minutes(5));
  std::vector<std::thread> threads;
  for (auto& communicator : communicators) {
    threads.emplace_back([&body, &communicator] { body(*communicator); });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace stillhouse

// Mutate: the input of one fuzzing iteration, a pure function of (seeds, seed, iteration).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace stillhouse {

// One of `seeds` after a few changes: flipped bits, extreme numbers, cut, repeated and foreign
// pieces. REQUIRES: seeds is not empty.
std::string Mutate(const std::vector<std::string>& seeds, uint64_t seed, uint64_t iteration);

}  // namespace stillhouse

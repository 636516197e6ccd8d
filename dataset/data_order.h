// The order in which a student reads the training documents of a plan.
#pragma once

#include <cstdint>
#include <vector>

#include "dataset/plan.h"

namespace stillhouse {

// Document indices of one epoch: chunks permuted by seed and epoch, then documents shuffled within
// each window of plan.shuffle_window() chunks. A pure function of its arguments; each training
// document appears exactly once, and the first step needs at most one window of chunks.
std::vector<uint32_t> EpochOrder(const Plan& plan, uint64_t seed, uint64_t epoch);

}  // namespace stillhouse

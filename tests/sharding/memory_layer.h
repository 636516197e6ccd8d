// MessageLayers of one process: rendezvous as MPI does it (nothing is sent before it is received),
// so that a protocol that relies on buffering hangs here, and one that uses a buffer too early
// shows. Can be told to fail.
#pragma once

#include <memory>
#include <vector>

#include "common/mutex.h"
#include "sharding/message_layer.h"

namespace stillhouse {

class MemorySwitch;

std::shared_ptr<MemorySwitch> MakeMemorySwitch(int ranks);
// REQUIRES: once per rank.
std::unique_ptr<MessageLayer> MakeMemoryLayer(std::shared_ptr<MemorySwitch> hub, int rank);
// From now on every call of `rank` fails with `error`.
void FailMemoryLayer(MemorySwitch& hub, int rank, const absl::Status& error);

}  // namespace stillhouse

// KeepForever: memory that a dead communicator may still write to is never given back.
#pragma once

#include <memory>

namespace stillhouse {

// Any thread.
void KeepForever(std::shared_ptr<void> memory);

}  // namespace stillhouse

#include "sharding/flat_buffer.h"

#include <sys/mman.h>

#include "common/status.h"

namespace stillhouse::internal {

void* MapZeroed(size_t bytes) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  SH_CHECK(data != MAP_FAILED, "no memory for ", bytes, " bytes");
  // Only advice: without huge pages the buffer works, a little slower.
  madvise(data, bytes, MADV_HUGEPAGE);
  return data;
}

void Unmap(void* data, size_t bytes) { munmap(data, bytes); }

}  // namespace stillhouse::internal

// FlatBuffer: one large zeroed run of numbers in host memory, page-aligned, in huge pages where the
// system grants them. Owns its memory; not thread-safe to resize, elements are the caller's to
// guard.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "absl/types/span.h"
#include "common/tensor_view.h"

namespace stillhouse {

namespace internal {
// Zeroed and page-aligned. Aborts the process when the address space is exhausted: Linux grants the
// map and fails later, on touch, so there is no error worth handing up.
void* MapZeroed(size_t bytes);
void Unmap(void* data, size_t bytes);
}  // namespace internal

template <typename T>
class FlatBuffer {
 public:
  FlatBuffer() = default;
  explicit FlatBuffer(size_t count)
      : data_(count == 0 ? nullptr : static_cast<T*>(internal::MapZeroed(count * sizeof(T)))),
        count_(count) {}
  ~FlatBuffer() {
    if (data_ != nullptr) internal::Unmap(data_, count_ * sizeof(T));
  }
  FlatBuffer(FlatBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), count_(std::exchange(other.count_, 0)) {}
  FlatBuffer& operator=(FlatBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t size() const { return count_; }
  absl::Span<T> span() { return {data_, count_}; }
  absl::Span<const T> span() const { return {data_, count_}; }

 private:
  T* data_ = nullptr;
  size_t count_ = 0;
};

}  // namespace stillhouse

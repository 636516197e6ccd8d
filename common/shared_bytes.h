// SharedBytes: immutable bytes and whoever keeps them alive, so that what a library received or
// read can be handed on without a copy.
//
// Copies share the bytes, which live as long as any of them. Thread-safe as a shared_ptr to const
// is.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "absl/strings/string_view.h"

namespace stillhouse {

class SharedBytes {
 public:
  SharedBytes() = default;
  SharedBytes(std::string bytes) {  // NOLINT(google-explicit-constructor): no copy, no surprise
    auto owned = std::make_shared<const std::string>(std::move(bytes));
    bytes_ = *owned;
    owner_ = std::move(owned);
  }
  // `owner` keeps `bytes` where they are.
  SharedBytes(absl::string_view bytes, std::shared_ptr<const void> owner)
      : bytes_(bytes), owner_(std::move(owner)) {}

  absl::string_view view() const { return bytes_; }
  operator absl::string_view() const { return bytes_; }  // NOLINT(google-explicit-constructor)
  const char* data() const { return bytes_.data(); }
  size_t size() const { return bytes_.size(); }
  bool empty() const { return bytes_.empty(); }
  char operator[](size_t i) const { return bytes_[i]; }

  friend bool operator==(const SharedBytes& a, const SharedBytes& b) {
    return a.bytes_ == b.bytes_;
  }

 private:
  absl::string_view bytes_;
  std::shared_ptr<const void> owner_;
};

}  // namespace stillhouse

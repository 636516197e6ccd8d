// Digests: SHA-256 where a hash protects against other people, XXH3-64 where it only detects
// damage.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace stillhouse {

// A SHA-256 value. Ordered by its bytes; zero means "none".
struct Digest {
  std::array<uint8_t, 32> bytes{};

  bool IsZero() const { return *this == Digest{}; }
  std::string Hex() const;                 // 64 lower-case digits
  std::string ShortHex() const;            // the first 8 digits, for people
  absl::string_view AsStringView() const;  // the 32 raw bytes; lives as long as *this

  friend auto operator<=>(const Digest&, const Digest&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const Digest& d) {
    return H::combine_contiguous(std::move(h), d.bytes.data(), d.bytes.size());
  }
};

// InvalidArgument unless `hex` is exactly 64 hexadecimal digits.
absl::StatusOr<Digest> DigestFromHex(absl::string_view hex);
// InvalidArgument unless `raw` is exactly 32 bytes.
absl::StatusOr<Digest> DigestFromBytes(absl::string_view raw);

// Incremental SHA-256. Fields written with AddField / AddU64 are self-delimiting, so two different
// sequences of fields never give the same input. Not thread-safe.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  Sha256& AddRaw(const void* data, size_t size);
  Sha256& AddRaw(absl::string_view bytes) { return AddRaw(bytes.data(), bytes.size()); }
  Sha256& AddU64(uint64_t value);             // 8 bytes, little endian
  Sha256& AddField(absl::string_view bytes);  // length as u64, then the bytes
  Sha256& AddDigest(const Digest& digest);    // its 32 bytes
  Digest Finish();                            // REQUIRES: called once

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

Digest Sha256Of(absl::string_view bytes);

// XXH3-64 of the bytes: a checksum, never an identity.
uint64_t Xxh3(absl::string_view bytes);
uint64_t Xxh3(const void* data, size_t size);

// Incremental XXH3-64 for data that does not lie in one piece. Not thread-safe.
class Xxh3Stream {
 public:
  Xxh3Stream();
  ~Xxh3Stream();
  void Add(absl::string_view bytes);
  uint64_t Finish() const;

 private:
  void* state_;
};

}  // namespace stillhouse

// Little-endian reading and writing of byte strings, for every format of ours that outlives a
// process.
//
// ByteReader never reads past its input: each method returns false (and the reader is then failed
// for good) instead of reading what is not there, so a parser may read a run of fields and test
// ok() once.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "absl/strings/string_view.h"
#include "common/digest.h"

namespace stillhouse {

class ByteWriter {
 public:
  template <typename T>
  void Put(T value) {  // integers and floats, little endian
    static_assert(std::is_arithmetic_v<T>);
    out_.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  void PutVarint(uint64_t value) {  // LEB128
    while (value >= 0x80) {
      out_.push_back(static_cast<char>(value | 0x80));
      value >>= 7;
    }
    out_.push_back(static_cast<char>(value));
  }
  void PutRaw(absl::string_view bytes) { out_.append(bytes.data(), bytes.size()); }
  void PutField(absl::string_view bytes) {  // varint length, then the bytes
    PutVarint(bytes.size());
    PutRaw(bytes);
  }
  void PutDigest(const Digest& digest) { PutRaw(digest.AsStringView()); }

  void Reserve(size_t bytes) { out_.reserve(bytes); }
  size_t size() const { return out_.size(); }
  const std::string& bytes() const { return out_; }
  std::string Take() { return std::move(out_); }

 private:
  std::string out_;
};

class ByteReader {
 public:
  explicit ByteReader(absl::string_view bytes) : rest_(bytes) {}

  template <typename T>
  bool Get(T* value) {
    static_assert(std::is_arithmetic_v<T>);
    if (!Need(sizeof(T))) return false;
    std::memcpy(value, rest_.data(), sizeof(T));
    rest_.remove_prefix(sizeof(T));
    return true;
  }
  bool GetVarint(uint64_t* value);
  bool GetRaw(uint64_t size, absl::string_view* bytes) {
    if (!Need(size)) return false;
    *bytes = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return true;
  }
  bool GetField(absl::string_view* bytes) {
    uint64_t size = 0;
    return GetVarint(&size) && GetRaw(size, bytes);
  }
  bool GetDigest(Digest* digest) {
    absl::string_view raw;
    if (!GetRaw(digest->bytes.size(), &raw)) return false;
    std::memcpy(digest->bytes.data(), raw.data(), raw.size());
    return true;
  }

  bool ok() const { return ok_; }
  bool AtEnd() const { return ok_ && rest_.empty(); }
  absl::string_view rest() const { return rest_; }

 private:
  bool Need(uint64_t size) {
    ok_ = ok_ && size <= rest_.size();
    return ok_;
  }

  absl::string_view rest_;
  bool ok_ = true;
};

}  // namespace stillhouse

// Bits in bytes, least significant first, as the codecs write them.
//
// BitReader never reads past its input: it then fails for good and gives zeros.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string>

#include "absl/strings/string_view.h"

namespace stillhouse {

class BitWriter {
 public:
  explicit BitWriter(std::string& out) : out_(out) {}

  // The low `width` bits of `value`. REQUIRES: width <= 56, value < 2^width.
  void Put(uint64_t value, int width) {
    held_ |= value << held_bits_;
    held_bits_ += width;
    while (held_bits_ >= 8) {
      out_.push_back(static_cast<char>(held_));
      held_ >>= 8;
      held_bits_ -= 8;
    }
  }
  // `value` zeros, then a one.
  void PutUnary(uint64_t value) {
    for (; value >= 32; value -= 32) Put(0, 32);
    Put(1ull << value, static_cast<int>(value) + 1);
  }
  // Fills the last byte with zeros.
  void Finish() {
    if (held_bits_ > 0) out_.push_back(static_cast<char>(held_));
    held_ = 0;
    held_bits_ = 0;
  }

 private:
  std::string& out_;
  uint64_t held_ = 0;
  int held_bits_ = 0;
};

class BitReader {
 public:
  explicit BitReader(absl::string_view bytes) : bytes_(bytes) {}

  // REQUIRES: width <= 56.
  uint64_t Get(int width) {
    if (width > held_bits_) {
      Fill();
      if (width > held_bits_) {
        Fail();
        return 0;
      }
    }
    const uint64_t value = held_ & ((1ull << width) - 1);
    Drop(width);
    return value;
  }
  // At most `max`, or the reader fails.
  uint64_t GetUnary(uint64_t max) {
    uint64_t zeros = 0;
    for (;;) {
      Fill();
      if (held_ != 0) {
        const int run = std::countr_zero(held_);
        zeros += run;
        if (zeros > max) break;
        Drop(run);
        Drop(1);
        return zeros;
      }
      zeros += held_bits_;
      if (held_bits_ == 0 || zeros > max) break;
      Drop(held_bits_);
    }
    Fail();
    return 0;
  }

  bool ok() const { return ok_; }
  // Everything was read but for less than a byte of zeros.
  bool AtEnd() const { return ok_ && next_ == bytes_.size() && held_bits_ < 8 && held_ == 0; }

 private:
  void Fill() {
    if (next_ + sizeof(uint64_t) <= bytes_.size() && held_bits_ <= 56) {  // whole bytes at once
      uint64_t word;
      std::memcpy(&word, bytes_.data() + next_, sizeof(word));
      const int bytes = (63 - held_bits_) / 8;
      held_ |= word << held_bits_;
      held_bits_ += 8 * bytes;
      held_ &= (1ull << held_bits_) - 1;
      next_ += bytes;
      return;
    }
    while (held_bits_ <= 56 && next_ < bytes_.size()) {
      held_ |= static_cast<uint64_t>(static_cast<uint8_t>(bytes_[next_++])) << held_bits_;
      held_bits_ += 8;
    }
  }
  void Drop(int bits) {
    held_ = bits >= 64 ? 0 : held_ >> bits;
    held_bits_ -= bits;
  }
  void Fail() {
    ok_ = false;
    next_ = bytes_.size();
    held_ = 0;
    held_bits_ = 0;
  }

  absl::string_view bytes_;
  size_t next_ = 0;
  uint64_t held_ = 0;  // bits above held_bits_ are zero
  int held_bits_ = 0;
  bool ok_ = true;
};

}  // namespace stillhouse

// A range coder over alphabets of 16 symbols, with models that learn while they code.
//
// Not thread-safe; integers only, so that every machine gives the same bytes. The decoder never
// reads past its input: beyond the end it sees zeros, and ok() is false once it has used more of
// them than an encoder leaves away. Whatever the input, a decoded symbol is below 16.
//
// Range coding: G. N. N. Martin, 1979. Models whose sums are rebuilt at growing intervals cost one
// increment a symbol.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <string>

#include "absl/strings/string_view.h"
#include "storage/bit_io.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace stillhouse {

inline constexpr int kSymbols = 16;
inline constexpr int kProbabilityBits = 15;

// What is known of one symbol's distribution: weights, and cumulative probabilities made from them
// now and then.
class SymbolModel {
 public:
  using Weights = std::array<uint16_t, kSymbols>;

  SymbolModel() : SymbolModel(Weights{8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8}) {}
  // What is believed at first; an occurrence weighs 16. REQUIRES: the weights sum to 1 … 2^15.
  explicit SymbolModel(const Weights& prior) : weights_(prior) { Rebuild(); }
  // A hexadecimal digit d a symbol: its weight is 2^(d/2), rounded down. REQUIRES: 16 digits.
  explicit SymbolModel(absl::string_view prior) : SymbolModel(WeightsOf(prior)) {}

  // Probabilities below the symbol, and its own, of 2^kProbabilityBits.
  uint32_t Below(uint32_t symbol) const { return static_cast<uint16_t>(below_[symbol]); }
  uint32_t Share(uint32_t symbol) const { return Below(symbol + 1) - Below(symbol); }

  // The symbol whose interval holds `target` < 2^kProbabilityBits.
  template <bool kPortable>
  uint32_t Find(uint32_t target) const {
#if defined(__SSE2__)
    if constexpr (!kPortable) {
      const __m128i wanted = _mm_set1_epi16(static_cast<int16_t>(target));
      const auto* below = reinterpret_cast<const __m128i*>(below_.data());
      const __m128i above = _mm_packs_epi16(_mm_cmpgt_epi16(_mm_loadu_si128(below), wanted),
                                            _mm_cmpgt_epi16(_mm_loadu_si128(below + 1), wanted));
      return static_cast<uint32_t>(std::countr_zero(_mm_movemask_epi8(above) | 0x10000u)) - 1;
    }
#endif
    uint32_t symbol = 0;
    for (int i = 1; i < kSymbols; ++i) symbol += Below(i) <= target;
    return symbol;
  }

  void Learn(uint32_t symbol) {
    weights_[symbol] += kStep;
    if (--until_rebuild_ == 0) {
      interval_ = std::min<uint16_t>(interval_ * 2, kIntervalMax);
      Rebuild();
    }
  }

 private:
  static constexpr uint16_t kStep = 16;  // of one occurrence
  static constexpr uint16_t kIntervalMax = 256;
  static constexpr uint32_t kWeightsMax = 1u << 15;  // their sum; then all are halved

  static Weights WeightsOf(absl::string_view digits);
  void Rebuild();

  Weights weights_;
  std::array<int16_t, kSymbols + 1> below_;  // the last is 2^15, which reads as -2^15
  uint16_t interval_ = 2;
  uint16_t until_rebuild_ = 0;
};

class RangeEncoder {
 public:
  void Put(SymbolModel* model, uint32_t symbol) {
    range_ >>= kProbabilityBits;
    const uint32_t offset = model->Below(symbol) * range_;
    range_ *= model->Share(symbol);
    low_ += offset;
    if (low_ < offset) Carry();
    for (; range_ < (1u << 24); range_ <<= 8) {
      out_.push_back(static_cast<char>(low_ >> 24));
      low_ <<= 8;
    }
    model->Learn(symbol);
  }
  // The bytes; three zeros at their end are left away. REQUIRES: nothing follows.
  std::string Finish();

 private:
  void Carry() {
    size_t i = out_.size();
    while (static_cast<uint8_t>(out_[--i]) == 0xff) out_[i] = 0;
    ++out_[i];
  }

  std::string out_;
  uint32_t low_ = 0;
  uint32_t range_ = 0xffffffffu;
};

// kPortable: without vector instructions; the same symbols either way.
template <bool kPortable>
class RangeDecoder {
 public:
  explicit RangeDecoder(absl::string_view bytes) : bytes_(bytes), size_(bytes.size()) {
    bytes_.append(kAhead + sizeof(uint32_t), '\0');
    code_ = Load(0);
    next_ = kAhead;
  }

  uint32_t Get(SymbolModel* model) {
    const uint32_t unit = range_ >> kProbabilityBits;
    const uint32_t target = std::min(code_ / unit, (1u << kProbabilityBits) - 1);
    const uint32_t symbol = model->template Find<kPortable>(target);
    code_ -= model->Below(symbol) * unit;
    range_ = model->Share(symbol) * unit;
    const int shift = std::countl_zero(range_) & ~7;
    range_ <<= shift;
    code_ =
        static_cast<uint32_t>(((static_cast<uint64_t>(code_) << 32 | Load(next_)) << shift) >> 32);
    next_ += static_cast<size_t>(shift) / 8;
    if (next_ > size_ + kMissing) [[unlikely]] {
      ok_ = false;
      next_ = size_ + kMissing;
    }
    model->Learn(symbol);
    return symbol;
  }

  bool ok() const { return ok_; }
  // Every byte was used, and no more.
  bool AtEnd() const { return ok_ && next_ == size_ + kMissing; }

 private:
  static constexpr size_t kAhead = sizeof(uint32_t);  // bytes that code_ begins with
  static constexpr size_t kMissing = 3;               // zeros that the encoder leaves away

  uint32_t Load(size_t at) const {
    uint32_t value;
    std::memcpy(&value, bytes_.data() + at, sizeof(value));
    if constexpr (std::endian::native == std::endian::little) value = __builtin_bswap32(value);
    return value;
  }

  std::string bytes_;  // and zeros behind them
  size_t size_;
  size_t next_ = 0;
  uint32_t code_ = 0;
  uint32_t range_ = 0xffffffffu;
  bool ok_ = true;
};

// A number below 2^31 as a symbol and bits beside it: 0 to 3 are themselves, then two symbols an
// octave; the last has no upper end.
struct Magnitude {
  static constexpr uint32_t kOpenFrom = 192;  // the least number of symbol 15

  static uint32_t SymbolOf(uint32_t value) {
    if (value < 4) return value;
    if (value >= kOpenFrom) return kSymbols - 1;
    const auto width = static_cast<uint32_t>(std::bit_width(value));
    return 2 * width - 2 + ((value >> (width - 2)) & 1);
  }
  static uint32_t LeastOf(uint32_t symbol) {
    return symbol < 4 ? symbol : (2 + (symbol & 1)) << (symbol / 2 - 1);
  }
  // Low bits beside every symbol but the last.
  static int BitsOf(uint32_t symbol) { return symbol < 4 ? 0 : static_cast<int>(symbol) / 2 - 1; }

  static void Put(uint32_t value, SymbolModel* model, RangeEncoder* symbols, BitWriter* bits) {
    const uint32_t symbol = SymbolOf(value);
    symbols->Put(model, symbol);
    if (symbol < kSymbols - 1) {
      bits->Put(value - LeastOf(symbol), BitsOf(symbol));
      return;
    }
    const uint32_t above = value - kOpenFrom + 1;
    const int width = std::bit_width(above) - 1;
    bits->Put(static_cast<uint64_t>(width), kOpenWidthBits);
    bits->Put(above & ((1u << width) - 1), width);
  }
  template <bool kPortable>
  static uint32_t Get(SymbolModel* model, RangeDecoder<kPortable>* symbols, BitReader* bits) {
    const uint32_t symbol = symbols->Get(model);
    if (symbol < kSymbols - 1) [[likely]] {
      return LeastOf(symbol) + static_cast<uint32_t>(bits->Get(BitsOf(symbol)));
    }
    const int width = static_cast<int>(bits->Get(kOpenWidthBits));
    return kOpenFrom - 1 + ((1u << width) | static_cast<uint32_t>(bits->Get(width)));
  }

 private:
  static constexpr int kOpenWidthBits = 5;
};

}  // namespace stillhouse

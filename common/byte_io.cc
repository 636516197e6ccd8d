#include "common/byte_io.h"

namespace stillhouse {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
              "our formats are written by copying memory");

bool ByteReader::GetVarint(uint64_t* value) {
  uint64_t result = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    uint8_t byte = 0;
    if (!Get(&byte)) return false;
    if (shift == 63 && byte > 1) break;  // does not fit in 64 bits
    result |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if ((byte & 0x80) == 0) {
      *value = result;
      return true;
    }
  }
  ok_ = false;
  return false;
}

}  // namespace stillhouse

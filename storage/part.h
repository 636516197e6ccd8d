// Parts: the unit in which sections are stored and moved.
#pragma once

#include <cstdint>
#include <string>

#include "common/digest.h"
#include "common/shared_bytes.h"
#include "storage/sections.h"

namespace stillhouse {

struct PartKey {
  Digest section;
  uint32_t row_begin = 0;  // a multiple of the section's RowsPerPart
  friend auto operator<=>(const PartKey&, const PartKey&) = default;
};

struct Part {
  PartKey key;
  uint32_t row_count = 0;
  SharedBytes payload;  // of storage/codec.h
  friend bool operator==(const Part&, const Part&) = default;
};

// Where the parts of one Put come from; stored beside them for audits, outside their identity.
struct Provenance {
  Digest teacher;
  Digest plan;
  uint32_t chunk = 0;
  SectionSpec spec;
  std::string producer_class;  // at most kProducerClassBytesMax
  friend bool operator==(const Provenance&, const Provenance&) = default;
};

inline constexpr uint64_t kProducerClassBytesMax = 4096;

}  // namespace stillhouse

// Lines of JSON from a file or standard input, each bounded.
#pragma once

#include <cstdint>
#include <fstream>
#include <istream>
#include <string>

#include "absl/status/statusor.h"
#include "formats/json.h"

namespace stillhouse {

inline constexpr size_t kLineBytesMax = 64 << 20;  // one document; what lies beyond is refused

class LineReader {
 public:
  // "-" is standard input. NotFound if the file is not there.
  static absl::StatusOr<LineReader> Open(const std::string& path);

  // The next line that is not blank, parsed; false at the end. Errors name file and line.
  absl::StatusOr<bool> Next(Json* value);
  // "ids.jsonl:3"
  std::string Where() const;

 private:
  std::string name_;
  std::ifstream file_;
  bool standard_input_ = false;
  uint64_t line_ = 0;
};

}  // namespace stillhouse

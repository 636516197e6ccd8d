#include "model/ctl/line_reader.h"

#include <algorithm>
#include <cerrno>
#include <iostream>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/status.h"

namespace stillhouse {
namespace {

// A line without its end; false at the end of the stream. The stream's fail bit tells a line that
// is too long from the end.
enum class LineEnd { kLine, kNothing, kTooLong };
LineEnd ReadLine(std::istream& in, std::string* line) {
  line->clear();
  std::streambuf& buffer = *in.rdbuf();
  for (;;) {
    const int byte = buffer.sbumpc();
    if (byte == std::char_traits<char>::eof()) {
      return line->empty() ? LineEnd::kNothing : LineEnd::kLine;
    }
    if (byte == '\n') return LineEnd::kLine;
    if (line->size() == kLineBytesMax) return LineEnd::kTooLong;
    line->push_back(static_cast<char>(byte));
  }
}

}  // namespace

absl::StatusOr<LineReader> LineReader::Open(const std::string& path) {
  LineReader reader;
  reader.standard_input_ = path == "-";
  reader.name_ = reader.standard_input_ ? "standard input" : path;
  if (!reader.standard_input_) {
    errno = 0;
    reader.file_.open(path, std::ios::binary);
    if (!reader.file_.is_open()) return ErrnoStatus("opening", path);
  }
  return reader;
}

std::string LineReader::Where() const { return absl::StrCat(name_, ":", line_); }

absl::StatusOr<bool> LineReader::Next(Json* value) {
  std::istream& in = standard_input_ ? std::cin : file_;
  std::string line;
  for (;;) {
    const LineEnd end = ReadLine(in, &line);
    if (end == LineEnd::kNothing) return false;
    ++line_;
    if (end == LineEnd::kTooLong) {
      return absl::InvalidArgumentError(
          absl::StrCat(Where(), ": longer than ", kLineBytesMax, " bytes"));
    }
    if (absl::StripAsciiWhitespace(line).empty()) continue;
    SH_ASSIGN_OR_RETURN(*value, ParseJson(line, name_, line_));
    return true;
  }
}

}  // namespace stillhouse

// How verbs show things: tables for people, JSON and YAML for programs.
//
// JSON and YAML carry the same fields under the same stable names: integers as they are (bytes,
// tokens), durations in seconds, digests as 64 hexadecimal digits. Tables may change between
// versions.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/command_line.h"

namespace stillhouse {

enum class OutputFormat { kTable, kJson, kYaml };

// Adds "-o,--output table|json|yaml". `format` must outlive the parsing.
void AddOutputOption(Command verb, OutputFormat* format);

struct Table {
  std::vector<std::string> header;
  std::vector<std::vector<std::string>> rows;  // each as wide as the header
};
// Columns two spaces apart, padded to what a terminal shows; numbers to the right.
std::string RenderTable(const Table& table);
std::string RenderYaml(const nlohmann::ordered_json& value);
// JSON with two-space indentation, or YAML; each ends in a newline. REQUIRES: format is not kTable.
std::string Render(const nlohmann::ordered_json& value, OutputFormat format);
void PrintText(absl::string_view text);      // to standard output; main tells of a failure
void PrintError(absl::string_view message);  // one line, to standard error

// One line about work under way, drawn over itself on a terminal's standard error; nothing
// elsewhere. Gone when the object is.
class StatusLine {
 public:
  StatusLine();
  ~StatusLine() { Show(""); }
  void Show(const std::string& text);

 private:
  const bool terminal_;
};

std::string HumanBytes(uint64_t bytes);  // "1.4 GiB"
std::string HumanCount(double count);    // "16.4k", "2.1M"
// A word as one would type it into a shell: quoted where it must be.
std::string ShellWord(absl::string_view word);
std::string Counted(uint64_t count, absl::string_view noun);  // "1 chunk", "2 chunks"
std::string HumanDuration(absl::Duration duration);           // "2h 05m", "3m 07s", "4.2s"
// "[#####-----]  50 %"; share is clamped to [0, 1].
std::string ProgressBar(double share, int width);

}  // namespace stillhouse

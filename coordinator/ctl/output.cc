#include "coordinator/ctl/output.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "common/command_line.h"
#include "common/status.h"

namespace stillhouse {
namespace {

using Json = nlohmann::ordered_json;

// Code points, which for what we print is the width on a terminal.
size_t Width(absl::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

bool LooksNumeric(absl::string_view text) {
  return text.empty() || text == "-" || (text[0] >= '0' && text[0] <= '9');
}

// A string needs no quotes in YAML when it could be nothing else.
bool IsPlain(const std::string& text) {
  if (text.empty() || text.size() > 200) return false;
  const auto is_safe = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '/' ||
           c == '.' || c == '_' || c == '-' || c == '+';
  };
  if (!std::all_of(text.begin(), text.end(), is_safe)) return false;
  const char first = text[0];
  if (!((first >= 'a' && first <= 'z') || (first >= 'A' && first <= 'Z') || first == '/'))
    return false;
  for (const char* word : {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}) {
    if (absl::AsciiStrToLower(text) == word) return false;
  }
  return true;
}

std::string Scalar(const Json& value) {
  if (value.is_string() && IsPlain(value.get_ref<const std::string&>()))
    return value.get<std::string>();
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);  // JSON scalars are YAML
}

void AppendYaml(const Json& value, int indent, std::string* out) {
  const std::string margin(indent, ' ');
  const auto append_child = [&](const Json& child) {
    if (!child.is_structured() || child.empty()) {
      absl::StrAppend(out, " ", Scalar(child), "\n");
    } else {
      absl::StrAppend(out, "\n");
      AppendYaml(child, indent + 2, out);
    }
  };
  if (value.is_object()) {
    for (const auto& [key, child] : value.items()) {
      absl::StrAppend(out, margin, Scalar(key), ":");
      append_child(child);
    }
    return;
  }
  for (const Json& child : value) {
    if (!child.is_structured() || child.empty()) {
      absl::StrAppend(out, margin, "- ", Scalar(child), "\n");
      continue;
    }
    std::string text;
    AppendYaml(child, indent + 2, &text);
    absl::StrAppend(out, margin, "- ", absl::string_view(text).substr(indent + 2));
  }
}

}  // namespace

void AddOutputOption(Command verb, OutputFormat* format) {
  const std::map<std::string, OutputFormat> words = {{"table", OutputFormat::kTable},
                                                     {"json", OutputFormat::kJson},
                                                     {"yaml", OutputFormat::kYaml}};
  verb.AddChoice("-o,--output", format, words, "table (default), json or yaml").ValueName("FORMAT");
}

std::string RenderTable(const Table& table) {
  const size_t columns = table.header.size();
  std::vector<size_t> widths(columns, 0);
  std::vector<bool> numeric(columns, !table.rows.empty());
  for (size_t c = 0; c < columns; ++c) {
    widths[c] = Width(table.header[c]);
    for (const std::vector<std::string>& row : table.rows) {
      SH_CHECK(row.size() == columns);
      widths[c] = std::max(widths[c], Width(row[c]));
      numeric[c] = numeric[c] && LooksNumeric(row[c]);
    }
  }
  std::string out;
  const auto append_row = [&](const std::vector<std::string>& row) {
    std::string line;
    for (size_t c = 0; c < columns; ++c) {
      const std::string padding(widths[c] - Width(row[c]), ' ');
      absl::StrAppend(&line, c == 0 ? "" : "  ", numeric[c] ? padding : "", row[c],
                      numeric[c] ? "" : padding);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    absl::StrAppend(&out, line, "\n");
  };
  append_row(table.header);
  for (const std::vector<std::string>& row : table.rows) append_row(row);
  return out;
}

std::string RenderYaml(const Json& value) {
  if (!value.is_structured() || value.empty()) return Scalar(value) + "\n";
  std::string out;
  AppendYaml(value, 0, &out);
  return out;
}

std::string Render(const Json& value, OutputFormat format) {
  SH_CHECK(format != OutputFormat::kTable);
  if (format == OutputFormat::kYaml) return RenderYaml(value);
  return value.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

void PrintText(absl::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

void PrintError(absl::string_view message) {
  std::fprintf(stderr, "coordinatorctl: %s\n", WithoutControls(std::string(message)).c_str());
}

StatusLine::StatusLine() : terminal_(isatty(STDERR_FILENO) == 1) {}

void StatusLine::Show(const std::string& text) {
  if (!terminal_) return;
  std::fprintf(stderr, "\r\033[K%s", text.c_str());
  std::fflush(stderr);
}

std::string HumanBytes(uint64_t bytes) {
  if (bytes < 1024) return absl::StrCat(bytes, " B");
  double value = static_cast<double>(bytes);
  const char* const units[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  int unit = -1;
  do {
    value /= 1024;
    ++unit;
  } while (value >= 1023.95 && unit < 5);
  return absl::StrFormat("%.*f %s", value < 99.95 ? 1 : 0, value, units[unit]);
}

std::string HumanCount(double count) {
  if (!(count >= 999.5)) return absl::StrFormat("%.0f", std::isfinite(count) ? count : 0.0);
  const char* const units[] = {"k", "M", "G", "T", "P"};
  int unit = -1;
  do {
    count /= 1000;
    ++unit;
  } while (count >= 999.5 && unit < 4);
  return absl::StrFormat("%.*f%s", count < 99.95 ? 1 : 0, count, units[unit]);
}

std::string ShellWord(absl::string_view word) {
  const bool plain = !word.empty() && std::all_of(word.begin(), word.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || absl::StrContains("_-./=:,+@%", c);
  });
  if (plain) return std::string(word);
  return absl::StrCat("'", absl::StrReplaceAll(word, {{"'", "'\\''"}}), "'");
}

std::string Counted(uint64_t count, absl::string_view noun) {
  return absl::StrCat(count, " ", noun, count == 1 ? "" : "s");
}

std::string HumanDuration(absl::Duration duration) {
  const double seconds = std::max(0.0, absl::ToDoubleSeconds(duration));
  if (!std::isfinite(seconds)) return "?";
  if (seconds < 9.95) return absl::StrFormat("%.1fs", seconds);
  const auto whole = static_cast<int64_t>(std::llround(seconds));
  if (whole < 60) return absl::StrCat(whole, "s");
  if (whole < 3600) return absl::StrFormat("%dm %02ds", whole / 60, whole % 60);
  if (whole < 86'400) return absl::StrFormat("%dh %02dm", whole / 3600, whole % 3600 / 60);
  return absl::StrFormat("%dd %02dh", whole / 86'400, whole % 86'400 / 3600);
}

std::string ProgressBar(double share, int width) {
  share = std::isfinite(share) ? std::clamp(share, 0.0, 1.0) : 0.0;
  const int full = static_cast<int>(share * width);
  return absl::StrCat("[", std::string(full, '#'), std::string(width - full, '-'), "] ",
                      absl::StrFormat("%3d %%", static_cast<int>(share * 100)));
}

}  // namespace stillhouse

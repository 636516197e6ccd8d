#include "dataset/sources.h"

#include <errno.h>
#include <glob.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/json.h"
#include "formats/utf8.h"

namespace stillhouse {
namespace {

using Json = nlohmann::json;

absl::StatusOr<std::vector<std::string>> Expand(const std::string& pattern) {
  // A path that exists as written is that file, whatever characters its name has.
  if (PathExists(pattern)) return std::vector<std::string>{pattern};
  if (absl::StrContains(pattern, "**")) {
    return absl::InvalidArgumentError(absl::StrCat(
        "dataset.sources: ", pattern, ": '**' is not supported; name each folder level"));
  }
  glob_t found{};
  const auto stop_where_forbidden = [](const char*, int error) { return error == EACCES ? 1 : 0; };
  const int result = glob(pattern.c_str(), GLOB_NOSORT, stop_where_forbidden, &found);
  std::vector<std::string> paths;
  if (result == 0) paths.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  globfree(&found);
  if (result == GLOB_NOMATCH) {
    return absl::NotFoundError(absl::StrCat("dataset.sources: no file matches ", pattern));
  }
  if (result != 0) {
    return absl::PermissionDeniedError(
        absl::StrCat("dataset.sources: ", pattern, ": a folder on the way cannot be read"));
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

bool IsJsonLines(absl::string_view path) {
  return absl::EndsWithIgnoreCase(path, ".jsonl") || absl::EndsWithIgnoreCase(path, ".ndjson");
}

absl::Status NotUtf8(const std::string& path, absl::string_view text, size_t bad,
                     size_t first_line) {
  const absl::string_view before = text.substr(0, bad);
  const size_t line = first_line + std::count(before.begin(), before.end(), '\n');
  const size_t newline = before.rfind('\n');
  const size_t column = newline == absl::string_view::npos ? bad : bad - newline - 1;
  return absl::InvalidArgumentError(
      absl::StrFormat("%s:%d: not UTF-8: byte 0x%02x at byte %d of the line", path, line,
                      static_cast<unsigned char>(text[bad]), column + 1));
}

absl::Status ReadTextFile(const SourceFile& file,
                          absl::FunctionRef<absl::Status(Source, uint64_t)> each) {
  absl::StatusOr<std::string> text = ReadFile(file.path, kTextSourceBytesMax);
  if (absl::IsResourceExhausted(text.status())) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path, ": more than ", kTextSourceBytesMax >> 20,
                     " MiB in one text; cut it into files, or into JSON lines"));
  }
  if (!text.ok()) return text.status();
  const uint64_t bytes = text->size();
  if (absl::StartsWith(*text, "\xEF\xBB\xBF")) text->erase(0, 3);
  if (const size_t bad = FindInvalidUtf8(*text); bad != absl::string_view::npos) {
    return NotUtf8(file.path, *text, bad, 1);
  }
  Source source;
  source.where = file.path;
  source.text = *std::move(text);
  return each(std::move(source), bytes);
}

// Reads lines of bounded length.
class LineReader {
 public:
  static absl::StatusOr<LineReader> Open(const std::string& path) {
    SH_ASSIGN_OR_RETURN(const int opened, OpenRegularFile(path));
    std::FILE* file = fdopen(opened, "rb");
    SH_CHECK(file != nullptr, "out of memory");
    return LineReader(path, file);
  }

  // False at the end. Lines come without their newline.
  absl::StatusOr<bool> Next(std::string* line) {
    line->clear();
    for (;;) {
      if (at_ == filled_) {
        at_ = 0;
        filled_ = std::fread(buffer_.data(), 1, buffer_.size(), file_.get());
        if (filled_ == 0 && std::ferror(file_.get())) return ErrnoStatus("reading", path_);
        if (filled_ == 0) return !line->empty();
      }
      const char* begin = buffer_.data() + at_;
      const auto* newline = static_cast<const char*>(std::memchr(begin, '\n', filled_ - at_));
      const size_t count = newline == nullptr ? filled_ - at_ : newline - begin;
      if (line->size() + count > kJsonLineBytesMax) {
        return absl::InvalidArgumentError(
            absl::StrCat("a line of more than ", kJsonLineBytesMax >> 20, " MiB"));
      }
      line->append(begin, count);
      at_ += count + (newline == nullptr ? 0 : 1);
      bytes_read_ += count + (newline == nullptr ? 0 : 1);
      if (newline != nullptr) return true;
    }
  }
  uint64_t bytes_read() const { return bytes_read_; }

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  LineReader(std::string path, std::FILE* file) : path_(std::move(path)), file_(file) {}

  std::string path_;
  std::unique_ptr<std::FILE, Close> file_;
  std::vector<char> buffer_ = std::vector<char>(1 << 18);
  size_t at_ = 0, filled_ = 0;
  uint64_t bytes_read_ = 0;
};

absl::StatusOr<Json> ParseObject(const std::string& line) {
  std::set<std::string> keys;
  std::string twice;
  const auto note_keys = [&](int depth, Json::parse_event_t event, Json& parsed) {
    // Not kept: nothing we read is nested like that, and printing it would recurse.
    if (depth > kJsonDepthMax) return false;
    if (event == Json::parse_event_t::key && depth == 1) {
      const std::string& key = parsed.get_ref<const std::string&>();
      if (!keys.insert(key).second) twice = key;
    }
    return true;
  };
  Json value;
  try {
    value = Json::parse(line, note_keys);
  } catch (const Json::parse_error& error) {
    return absl::InvalidArgumentError(absl::StrCat("not JSON (byte ", error.byte, " of the line)"));
  } catch (const Json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("not JSON: ", error.what()));
  }
  if (!value.is_object()) {
    return absl::InvalidArgumentError("not a JSON object with \"text\" or \"input_ids\"");
  }
  if (!twice.empty())
    return absl::InvalidArgumentError(absl::StrCat("\"", twice, "\" stands twice"));
  return value;
}

absl::Status ReadIds(const Json& ids, int32_t id_bound, std::vector<int32_t>* out) {
  if (!ids.is_array()) return absl::InvalidArgumentError("input_ids: not a list");
  out->reserve(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    if (!ids[i].is_number_unsigned() || ids[i].get<uint64_t>() >= static_cast<uint64_t>(id_bound)) {
      return absl::InvalidArgumentError(
          absl::StrCat("input_ids[", i, "]: ", ids[i].dump().substr(0, 40),
                       " is not a token id (0 to ", id_bound - 1, ")"));
    }
    out->push_back(static_cast<int32_t>(ids[i].get<uint64_t>()));
  }
  return absl::OkStatus();
}

absl::Status ReadMask(const Json& mask, size_t count, std::vector<uint8_t>* out) {
  if (!mask.is_array()) return absl::InvalidArgumentError("loss_mask: not a list");
  if (mask.size() != count) {
    return absl::InvalidArgumentError(
        absl::StrCat("loss_mask has ", mask.size(), " entries for ", count, " input_ids"));
  }
  out->clear();
  for (size_t i = 0; i < mask.size(); ++i) {
    const bool is_bit =
        mask[i].is_boolean() || (mask[i].is_number_unsigned() && mask[i].get<uint64_t>() <= 1);
    if (!is_bit) return absl::InvalidArgumentError(absl::StrCat("loss_mask[", i, "]: not 0 or 1"));
    out->push_back(mask[i].is_boolean() ? mask[i].get<bool>() : mask[i].get<uint64_t>() == 1);
  }
  return absl::OkStatus();
}

absl::StatusOr<Source> ParseLine(const std::string& line, int32_t id_bound) {
  SH_ASSIGN_OR_RETURN(const Json value, ParseObject(line));
  const auto text = value.find("text"), ids = value.find("input_ids"),
             mask = value.find("loss_mask");
  Source source;
  if (text != value.end() && ids != value.end()) {
    return absl::InvalidArgumentError("has both \"text\" and \"input_ids\": keep one");
  }
  if (text != value.end()) {
    if (!text->is_string()) return absl::InvalidArgumentError("text: not a string");
    if (mask != value.end()) return absl::InvalidArgumentError("loss_mask: needs \"input_ids\"");
    source.text = text->get<std::string>();
    return source;
  }
  if (ids == value.end())
    return absl::InvalidArgumentError("has neither \"text\" nor \"input_ids\"");
  source.is_ids = true;
  SH_RETURN_IF_ERROR(ReadIds(*ids, id_bound, &source.ids));
  source.loss_mask.assign(source.ids.size(), 1);
  if (mask != value.end()) {
    SH_RETURN_IF_ERROR(ReadMask(*mask, source.ids.size(), &source.loss_mask));
  }
  return source;
}

absl::Status ReadJsonLines(const SourceFile& file, int32_t id_bound,
                           absl::FunctionRef<absl::Status(Source, uint64_t)> each) {
  SH_ASSIGN_OR_RETURN(LineReader reader, LineReader::Open(file.path));
  std::string line;
  for (uint64_t number = 1;; ++number) {
    const std::string where = absl::StrCat(file.path, ":", number);
    SH_ASSIGN_OR_RETURN_AT(const bool more, reader.Next(&line), where);
    if (!more) return absl::OkStatus();
    if (number == 1 && absl::StartsWith(line, "\xEF\xBB\xBF")) line.erase(0, 3);
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    if (const size_t bad = FindInvalidUtf8(line); bad != absl::string_view::npos) {
      return NotUtf8(file.path, line, bad, number);
    }
    SH_ASSIGN_OR_RETURN_AT(Source source, ParseLine(line, id_bound), where);
    source.where = where;
    SH_RETURN_IF_ERROR(each(std::move(source), reader.bytes_read()));
  }
}

absl::StatusOr<SourceFile> Inspect(const std::string& path, const std::string& domain) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return ErrnoStatus("dataset.sources: opening", path);
  if (absl::EndsWithIgnoreCase(path, ".json")) {
    return absl::InvalidArgumentError(absl::StrCat(
        "dataset.sources: ", path, ": one JSON object per line goes into a file named .jsonl"));
  }
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat("dataset.sources: ", path, ": not a regular file"));
  }
  return SourceFile{.path = path,
                    .domain = domain.empty() ? "default" : domain,
                    .json_lines = IsJsonLines(path),
                    .bytes = static_cast<uint64_t>(info.st_size),
                    .changed_ns = info.st_mtim.tv_sec * 1'000'000'000ll + info.st_mtim.tv_nsec};
}

bool IsFolder(const std::string& path) {
  struct stat info {};
  return stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

}  // namespace

absl::StatusOr<std::vector<SourceFile>> FindSources(const std::vector<SourceRecipe>& recipes) {
  std::vector<SourceFile> files;
  absl::flat_hash_map<std::string, std::string> matched_by;
  for (const SourceRecipe& recipe : recipes) {
    SH_ASSIGN_OR_RETURN(const std::vector<std::string> paths, Expand(recipe.path));
    const size_t before = files.size();
    for (const std::string& path : paths) {
      if (IsFolder(path)) continue;
      const auto [seen, is_new] = matched_by.try_emplace(path, recipe.path);
      if (!is_new) {
        return absl::InvalidArgumentError(absl::StrCat(
            "dataset.sources: ", path, " is matched by both ", seen->second, " and ", recipe.path));
      }
      SH_ASSIGN_OR_RETURN(SourceFile file, Inspect(path, recipe.domain));
      files.push_back(std::move(file));
      if (files.size() > kSourceFilesMax) {
        return absl::InvalidArgumentError(
            absl::StrCat("dataset.sources: more than ", kSourceFilesMax, " files: use JSON lines"));
      }
    }
    if (files.size() == before) {
      return absl::NotFoundError(absl::StrCat("dataset.sources: ", recipe.path,
                                              " is a folder; name its files, for example ",
                                              JoinPath(recipe.path, "*.txt")));
    }
  }
  return files;
}

Digest Source::ContentHash() const {
  Sha256 hash;
  hash.AddField("stillhouse source v1").AddU64(is_ids ? 1 : 0);
  if (!is_ids) return hash.AddField(text).Finish();
  hash.AddU64(ids.size());
  hash.AddRaw(ids.data(), ids.size() * sizeof(int32_t));
  return hash.AddRaw(loss_mask.data(), loss_mask.size()).Finish();
}

absl::Status ReadSources(const SourceFile& file, int32_t id_bound,
                         absl::FunctionRef<absl::Status(Source, uint64_t)> each) {
  return file.json_lines ? ReadJsonLines(file, id_bound, each) : ReadTextFile(file, each);
}

}  // namespace stillhouse

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/model_files.h"
#include "model/ctl/commands.h"
#include "model/ctl/line_reader.h"

namespace stillhouse {
namespace {

// Appends the answer to one line, without the line's end.
using Answer = absl::FunctionRef<absl::Status(const JsonFields& line, std::string& out)>;

// A line of standard output for each of standard input. Errors name the line.
absl::Status AnswerLines(Answer answer) {
  SH_ASSIGN_OR_RETURN(LineReader lines, LineReader::Open("-"));
  Json value;
  std::string out;
  for (;;) {
    SH_ASSIGN_OR_RETURN(const bool more, lines.Next(&value));
    if (!more) break;
    out.clear();
    const std::string where = lines.Where();
    SH_RETURN_IF_ERROR(answer(JsonFields(value, where), out));
    out.push_back('\n');
    if (std::fwrite(out.data(), 1, out.size(), stdout) != out.size()) {
      return ErrnoStatus("writing", "standard output");
    }
  }
  if (std::fflush(stdout) != 0) return ErrnoStatus("writing", "standard output");
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> ReadIds(const JsonFields& line) {
  const Json* list = line.Find("ids");
  if (list == nullptr || !list->is_array()) return line.WrongType("ids", "a list of token ids");
  std::vector<int32_t> ids;
  for (const Json& id : *list) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= 1u << 31) {
      return line.WrongType("ids", absl::StrCat("a list of token ids, not of ",
                                                id.dump(-1, ' ', true).substr(0, 40)));
    }
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

void AddAffixes(const Tokenizer& tokenizer, Encoding& encoding) {
  const auto add = [&](absl::Span<const int32_t> affix, bool before) {
    auto& [ids, offsets] = encoding;
    ids.insert(before ? ids.begin() : ids.end(), affix.begin(), affix.end());
    offsets.insert(before ? offsets.begin() : offsets.end(), affix.size(), TextRange());
  };
  add(tokenizer.prefix(), /*before=*/true);
  add(tokenizer.suffix(), /*before=*/false);
}

}  // namespace

absl::Status Tokenize(const TokenizeFlags& flags) {
  SH_ASSIGN_OR_RETURN(const std::shared_ptr<const Tokenizer> tokenizer, OpenTokenizer(flags.model));
  return AnswerLines([&](const JsonFields& line, std::string& out) -> absl::Status {
    SH_ASSIGN_OR_RETURN(const std::string text, line.RequiredString("text"));
    Encoding encoding;
    if (flags.offsets) {
      SH_ASSIGN_OR_RETURN_AT(encoding, tokenizer->EncodeWithOffsets(text), line.path());
    } else {
      SH_ASSIGN_OR_RETURN_AT(encoding.ids, tokenizer->Encode(text), line.path());
    }
    if (flags.special) AddAffixes(*tokenizer, encoding);
    absl::StrAppend(&out, "{\"ids\": [", absl::StrJoin(encoding.ids, ", "), "]");
    if (flags.offsets) {
      const auto append = [](std::string* to, const TextRange& place) {
        absl::StrAppend(to, "[", place.begin, ", ", place.end, "]");
      };
      absl::StrAppend(&out, ", \"offsets\": [", absl::StrJoin(encoding.offsets, ", ", append), "]");
    }
    out.push_back('}');
    return absl::OkStatus();
  });
}

absl::Status Detokenize(const DetokenizeFlags& flags) {
  SH_ASSIGN_OR_RETURN(const std::shared_ptr<const Tokenizer> tokenizer, OpenTokenizer(flags.model));
  return AnswerLines([&](const JsonFields& line, std::string& out) -> absl::Status {
    SH_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, ReadIds(line));
    SH_ASSIGN_OR_RETURN_AT(const std::string text, tokenizer->Decode(ids, flags.skip_special),
                           line.path());
    absl::StrAppend(&out, "{\"text\": ", Json(text).dump(), "}");
    return absl::OkStatus();
  });
}

}  // namespace stillhouse

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/model_files.h"
#include "model/ctl/commands.h"
#include "model/ctl/line_reader.h"

namespace stillhouse {

absl::Status Tokenize(const std::string& model) {
  SH_ASSIGN_OR_RETURN(const std::shared_ptr<const Tokenizer> tokenizer, OpenTokenizer(model));
  SH_ASSIGN_OR_RETURN(LineReader lines, LineReader::Open("-"));
  Json value;
  for (;;) {
    SH_ASSIGN_OR_RETURN(const bool more, lines.Next(&value));
    if (!more) break;
    SH_ASSIGN_OR_RETURN(const std::string text,
                        JsonFields(value, lines.Where()).RequiredString("text"));
    SH_ASSIGN_OR_RETURN_AT(const std::vector<int32_t> ids, tokenizer->Encode(text), lines.Where());
    const std::string line = absl::StrCat("{\"ids\": [", absl::StrJoin(ids, ", "), "]}\n");
    if (std::fwrite(line.data(), 1, line.size(), stdout) != line.size()) {
      return ErrnoStatus("writing", "standard output");
    }
  }
  if (std::fflush(stdout) != 0) return ErrnoStatus("writing", "standard output");
  return absl::OkStatus();
}

}  // namespace stillhouse

// tokenize_bench MODEL TEXT_FOLDER TIMES [WRITE_FOLDER]: how fast text becomes ids, on one thread.
// Encodes every file of the folder, TIMES times over, and prints {"bytes", "seconds", "ids"}; with
// WRITE_FOLDER it only writes the tokenizer's files there, for the same with another library.
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/model_files.h"

namespace stillhouse {
namespace {

absl::Status Run(const std::string& model, const std::string& folder, int times) {
  SH_ASSIGN_OR_RETURN(const auto tokenizer, OpenTokenizer(model));
  SH_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(folder));
  std::vector<std::string> texts;
  size_t bytes = 0;
  for (const std::string& name : names) {
    if (name.front() == '.') continue;
    SH_ASSIGN_OR_RETURN(std::string text, ReadFile(JoinPath(folder, name)));
    bytes += text.size();
    texts.push_back(std::move(text));
  }
  size_t ids = 0;
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < times; ++i) {
    for (const std::string& text : texts) {
      SH_ASSIGN_OR_RETURN(const std::vector<int32_t> encoded, tokenizer->Encode(text));
      ids += encoded.size();
    }
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::printf("{\"bytes\": %zu, \"seconds\": %.6f, \"ids\": %zu}\n",
              bytes * static_cast<size_t>(times), seconds.count(), ids);
  return absl::OkStatus();
}

absl::Status Write(const std::string& model, const std::string& folder) {
  SH_ASSIGN_OR_RETURN(const auto tokenizer, OpenTokenizer(model));
  SH_RETURN_IF_ERROR(MakeFolders(folder));
  return tokenizer->WriteFiles(folder);
}

}  // namespace
}  // namespace stillhouse

int main(int argc, char** argv) {
  int times = 0;
  if (argc < 4 || argc > 5 || !absl::SimpleAtoi(argv[3], &times)) {
    std::fprintf(stderr, "usage: tokenize_bench MODEL TEXT_FOLDER TIMES [WRITE_FOLDER]\n");
    return 2;
  }
  const absl::Status status =
      argc == 5 ? stillhouse::Write(argv[1], argv[4]) : stillhouse::Run(argv[1], argv[2], times);
  if (!status.ok()) std::fprintf(stderr, "tokenize_bench: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}

// libFuzzer entry: the first byte chooses the reader, the rest is its input. Whatever the bytes, a
// reader answers with a value or a Status.
#include <cstdint>
#include <fstream>

#include "absl/strings/string_view.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/model_files.h"
#include "formats/safetensors.h"
#include "formats/tokenizer_spec.h"

namespace stillhouse {
namespace {

// The file readers map files, so the bytes go through one (on a tmpfs, as a rule).
std::string WriteInput(absl::string_view bytes) {
  static const auto* const kFolder = new TempFolder(*TempFolder::Create("fuzz"));
  const std::string path = JoinPath(kFolder->path(), "input");
  std::ofstream(path, std::ios::binary | std::ios::trunc).write(bytes.data(), bytes.size());
  return path;
}

void Run(uint8_t reader, absl::string_view bytes) {
  switch (reader % 4) {
    case 0:
      OpenModelFiles(WriteInput(bytes)).status().IgnoreError();
      break;
    case 1:
      SafetensorsFile::Open(WriteInput(bytes)).status().IgnoreError();
      break;
    case 2:
      ParseConfigJson(bytes, "fuzz").status().IgnoreError();
      break;
    default: {
      auto spec = ParseTokenizerJson(bytes, "fuzz");
      if (!spec.ok()) return;
      const auto tokenizer = MakeTokenizer(*std::move(spec));
      if (tokenizer.ok()) (*tokenizer)->Encode(bytes.substr(0, 256)).status().IgnoreError();
    }
  }
}

}  // namespace
}  // namespace stillhouse

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > 0) stillhouse::Run(data[0], {reinterpret_cast<const char*>(data) + 1, size - 1});
  return 0;
}

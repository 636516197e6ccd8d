// load_bench FOLDER [MODEL]: how fast the tensors of a model come into memory of their own, in the
// dtype that they are stored in, by all threads, from opening the files (the tokenizer is not
// read). Prints {"bytes", "seconds"}; with MODEL it only writes that model as a bfloat16 folder at
// FOLDER, for the same with another library.
#include <chrono>
#include <cstdio>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/load_tensors.h"
#include "formats/model_config.h"
#include "formats/model_files.h"
#include "formats/safetensors_model.h"

namespace stillhouse {
namespace {

absl::Status Run(const std::string& folder) {
  const std::string config_path = JoinPath(folder, "config.json");
  SH_ASSIGN_OR_RETURN(const std::string text, ReadFile(config_path, 1 << 20));
  SH_ASSIGN_OR_RETURN(const ModelConfig config, ParseConfigJson(text, config_path));
  const auto start = std::chrono::steady_clock::now();
  SH_ASSIGN_OR_RETURN(const auto weights, OpenFolderWeights(folder, config));
  std::vector<std::unique_ptr<char[]>> memory;
  std::vector<LoadTarget> targets;
  size_t bytes = 0;
  for (const TensorInfo& info : weights->tensors()) {
    const size_t size = static_cast<size_t>(info.Count()) * FloatBytes(info.stored_dtype);
    memory.emplace_back(new char[size]);  // not filled
    targets.push_back({info.name, info.stored_dtype, memory.back().get()});
    bytes += size;
  }
  SH_RETURN_IF_ERROR(LoadTensors(*weights, targets));
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::printf("{\"bytes\": %zu, \"seconds\": %.6f}\n", bytes, seconds.count());
  return absl::OkStatus();
}

absl::Status Write(const std::string& folder, const std::string& path) {
  SH_ASSIGN_OR_RETURN(const ModelFiles model, OpenModelFiles(path));
  SH_ASSIGN_OR_RETURN(const auto tensors, TensorsToWrite(model.weights, "BF16"));
  return WriteHuggingFaceFolder(folder, model.config, *model.tokenizer, tensors);
}

}  // namespace
}  // namespace stillhouse

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) {
    std::fprintf(stderr, "usage: load_bench FOLDER [MODEL]\n");
    return 2;
  }
  const absl::Status status =
      argc == 3 ? stillhouse::Write(argv[1], argv[2]) : stillhouse::Run(argv[1]);
  if (!status.ok()) std::fprintf(stderr, "load_bench: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}

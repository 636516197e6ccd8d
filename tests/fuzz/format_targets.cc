// Model files: GGUF, safetensors, config.json, tokenizer.json.
#include "absl/strings/str_replace.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/gguf.h"
#include "formats/model_config.h"
#include "formats/model_files.h"
#include "formats/safetensors.h"
#include "formats/tokenizer_spec.h"
#include "tests/formats/gguf_builder.h"
#include "tests/formats/tiny_model.h"
#include "tests/fuzz/target.h"

namespace stillhouse {
namespace {

constexpr char kText[] = "Three stills, 12 casks; naïve café\n\n  and 3.14";

std::shared_ptr<TempFolder> NewFolder() {
  auto folder = TempFolder::Create("fuzz");
  SH_CHECK_OK(folder);
  return std::make_shared<TempFolder>(*std::move(folder));
}

std::string Bytes(const std::string& path) {
  const auto bytes = ReadFile(path);
  SH_CHECK_OK(bytes);
  return *bytes;
}

// The files are opened from disk, as they are in use.
std::string Place(const TempFolder& folder, const char* name, absl::string_view bytes) {
  const std::string path = JoinPath(folder.path(), name);
  FILE* const file = std::fopen(path.c_str(), "wb");
  SH_CHECK(file != nullptr);
  SH_CHECK(std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size());
  SH_CHECK(std::fclose(file) == 0);
  return path;
}

TinyModelOptions Small() {
  TinyModelOptions options;
  options.layers = 1;
  options.hidden = 32;
  options.intermediate = 32;
  options.heads = 2;
  options.kv_heads = 1;
  return options;
}

void ReadAll(const ModelFiles& model) {
  for (const TensorInfo& info : model.weights->tensors()) {
    std::vector<float> values(static_cast<size_t>(info.Count()));
    (void)model.weights->ReadF32(info.name, absl::MakeSpan(values));
  }
  const auto ids = model.tokenizer->Encode(kText);
  if (ids.ok()) (void)model.tokenizer->Decode(*ids, /*skip_special=*/false);
}

// A block of every tensor type that we decode.
std::string EveryType() {
  GgufBuilder file;
  for (const char* name :
       {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"}) {
    const GgmlType* type = FindGgmlType(name);
    SH_CHECK(type != nullptr, name);
    file.AddTensor(name, {2, type->block}, type->number, std::string(2 * type->bytes, '\x3c'));
  }
  return file.Build();
}

FuzzTarget GgufTarget() {
  const auto folder = NewFolder();
  std::vector<std::string> seeds;
  for (const char* type : {"F32", "Q4_1"}) {
    const std::string path = JoinPath(folder->path(), type);
    SH_CHECK_OK(WriteTinyGguf(path, Small(), type));
    seeds.push_back(Bytes(path));
  }
  seeds.push_back(EveryType());
  return {
      "gguf", seeds, [folder](absl::string_view input) {
        const std::string path = Place(*folder, "model.gguf", input);
        const auto model = OpenModelFiles(path);
        if (model.ok()) return ReadAll(*model);
        const auto file = GgufFile::Open(path);
        if (!file.ok()) return;
        for (const GgufTensor& tensor : (*file)->tensors()) {
          std::vector<float> values(tensor.bytes.size() / tensor.type->bytes * tensor.type->block);
          GgmlDecode(*tensor.type, tensor.bytes, absl::MakeSpan(values));
        }
      }};
}

// The second of three parts; the others are sound.
FuzzTarget SplitGgufTarget() {
  const auto folder = NewFolder();
  for (const int64_t number : {0, 2}) {
    Place(*folder, number == 0 ? "m-00001-of-00003.gguf" : "m-00003-of-00003.gguf",
          TinyGgufPart(Small(), {.number = number}));
  }
  return {"gguf_split", {TinyGgufPart(Small(), {.number = 1})}, [folder](absl::string_view input) {
            Place(*folder, "m-00002-of-00003.gguf", input);
            const auto model = OpenModelFiles(folder->path());
            if (model.ok()) ReadAll(*model);
          }};
}

// The index of a folder of several files.
FuzzTarget IndexTarget() {
  const auto folder = NewFolder();
  const std::string whole = JoinPath(folder->path(), "whole");
  SH_CHECK_OK(WriteTinyModel(whole, Small()));
  const auto model = OpenModelFiles(whole);
  SH_CHECK_OK(model);
  const std::string sharded = JoinPath(folder->path(), "sharded");
  SH_CHECK_OK(WriteHuggingFaceFolder(sharded, model->config, *model->tokenizer,
                                     *TensorsToWrite(model->weights, ""),
                                     {.shard_bytes_max = 20'000}));
  const std::string index = JoinPath(sharded, "model.safetensors.index.json");
  return {"safetensors_index", {Bytes(index)}, [folder, sharded](absl::string_view input) {
            Place(*folder, "sharded/model.safetensors.index.json", input);
            const auto opened = OpenModelFiles(sharded);
            if (opened.ok()) ReadAll(*opened);
          }};
}

FuzzTarget SafetensorsTarget() {
  const auto folder = NewFolder();
  const std::string model = JoinPath(folder->path(), "model");
  SH_CHECK_OK(WriteTinyModel(model, Small()));
  return {"safetensors",
          {Bytes(JoinPath(model, "model.safetensors"))},
          [folder](absl::string_view input) {
            const auto file = SafetensorsFile::Open(Place(*folder, "x.safetensors", input));
            if (!file.ok()) return;
            for (const SafetensorsTensor& tensor : (*file)->tensors()) (*file)->Bytes(tensor);
          }};
}

FuzzTarget ConfigTarget() {
  const auto folder = NewFolder();
  const std::string model = JoinPath(folder->path(), "model");
  SH_CHECK_OK(WriteTinyModel(model, Small()));
  return {"config_json", {Bytes(JoinPath(model, "config.json"))}, [](absl::string_view input) {
            const auto config = ParseConfigJson(input, "config.json");
            if (config.ok()) (void)config->Parameters();
          }};
}

FuzzTarget TokenizerTarget() {
  // Another with most of what a file may say.
  std::string rich = TinyTokenizerJson();
  SH_CHECK(
      absl::StrReplaceAll(
          {{"\"normalizer\": null",
            R"("normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Prepend",
                    "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]})"},
           {"\"type\": \"Digits\"",
            R"("type": "Split", "pattern": {"Regex": "\\p{L}+|\\s*"}, "behavior": "MergedWithNext",
                    "invert": true}, {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first")"},
           {"\"lstrip\": false", "\"lstrip\": true"},
           {"\"byte_fallback\": false", "\"byte_fallback\": true"}},
          &rich) >= 5);
  return {"tokenizer_json", {TinyTokenizerJson(), rich}, [](absl::string_view input) {
            auto spec = ParseTokenizerJson(input, "tokenizer.json");
            if (!spec.ok()) return;
            const auto tokenizer = MakeTokenizer(*std::move(spec));
            if (!tokenizer.ok()) return;
            const auto ids = (*tokenizer)->Encode(kText);
            if (ids.ok()) (void)(*tokenizer)->Decode(*ids, /*skip_special=*/true);
            (void)(*tokenizer)->EncodeWithOffsets(kText);
          }};
}

}  // namespace

std::vector<FuzzTarget> FormatTargets() {
  return {GgufTarget(),  SplitGgufTarget(), SafetensorsTarget(),
          IndexTarget(), ConfigTarget(),    TokenizerTarget()};
}

}  // namespace stillhouse

#include <unistd.h>

#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "ATen/ops/empty.h"
#include "absl/strings/str_cat.h"
#include "c10/core/GradMode.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/model_files.h"
#include "formats/safetensors.h"
#include "model/ctl/commands.h"
#include "model/ctl/line_reader.h"
#include "model/ctl/load_progress.h"
#include "model/decoder.h"
#include "model/matmul.h"
#include "model/torch_status.h"

namespace stillhouse {
namespace {

constexpr int64_t kChunkRows = 256;            // logits in memory at a time
constexpr uint64_t kDocumentsMax = 1'000'000;  // tensors of one file
constexpr uint64_t kTokensMax = 1ull << 28;

// {"ids": […]} a line, checked against the model, so that nothing is computed for bad input.
absl::StatusOr<std::vector<at::Tensor>> ReadDocuments(const std::string& path,
                                                      const ModelConfig& config) {
  SH_ASSIGN_OR_RETURN(LineReader lines, LineReader::Open(path));
  std::vector<at::Tensor> documents;
  uint64_t tokens = 0;
  Json value;
  for (;;) {
    SH_ASSIGN_OR_RETURN(const bool more, lines.Next(&value));
    if (!more) break;
    const Json* list = JsonFields(value, lines.Where()).Find("ids");
    if (list == nullptr || !list->is_array() || list->empty() ||
        list->size() > static_cast<uint64_t>(config.TokensMax())) {
      return absl::InvalidArgumentError(absl::StrCat(
          lines.Where(), ": needs `ids`, a list of 1 to ", config.TokensMax(), " token ids"));
    }
    at::Tensor ids =
        at::empty({static_cast<int64_t>(list->size())}, at::TensorOptions().dtype(at::kLong));
    int64_t* next = ids.mutable_data_ptr<int64_t>();
    for (const Json& id : *list) {
      if (!id.is_number_unsigned() ||
          id.get<uint64_t>() >= static_cast<uint64_t>(config.vocab_size)) {
        return absl::InvalidArgumentError(absl::StrCat(lines.Where(), ": ", id.dump().substr(0, 40),
                                                       " is no token id below ",
                                                       config.vocab_size));
      }
      *next++ = id.get<int64_t>();
    }
    tokens += list->size();
    documents.push_back(std::move(ids));
    if (documents.size() > kDocumentsMax || tokens > kTokensMax) {
      return absl::InvalidArgumentError(absl::StrCat(lines.Where(), ": more than ", kDocumentsMax,
                                                     " lines or ", kTokensMax, " tokens"));
    }
  }
  if (documents.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": no line with `ids`"));
  }
  return documents;
}

absl::Status WriteLogits(const DecoderWeights& weights, const at::Tensor& ids,
                         SafetensorsWriter& writer) {
  const c10::NoGradGuard no_grad;
  SH_ASSIGN_OR_RETURN(const at::Tensor hidden, ForwardHidden(weights, {ids, {ids.size(0)}}));
  for (int64_t begin = 0; begin < ids.size(0); begin += kChunkRows) {
    const int64_t rows = std::min(kChunkRows, ids.size(0) - begin);
    at::Tensor logits;
    SH_RETURN_IF_ERROR(CallTorch([&] {
      logits = ops::Linear(hidden.narrow(0, begin, rows), weights.head).to(at::kFloat).contiguous();
    }));
    SH_RETURN_IF_ERROR(writer.Append(absl::string_view(
        static_cast<const char*>(logits.const_data_ptr()), static_cast<size_t>(logits.nbytes()))));
  }
  return absl::OkStatus();
}

absl::Status WriteFile(const DecoderWeights& weights, const std::vector<at::Tensor>& documents,
                       const std::string& path) {
  std::vector<SafetensorsTensor> tensors;
  for (size_t i = 0; i < documents.size(); ++i) {
    tensors.push_back({.name = absl::StrCat("logits.", i),
                       .dtype = "F32",
                       .shape = {documents[i].size(0), weights.config.vocab_size}});
  }
  SH_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsWriter> writer,
                      SafetensorsWriter::Create(path, std::move(tensors)));
  for (const at::Tensor& ids : documents) SH_RETURN_IF_ERROR(WriteLogits(weights, ids, *writer));
  return writer->Close();
}

}  // namespace

absl::Status Logits(const LogitsFlags& flags) {
  if (PathExists(flags.out)) return absl::AlreadyExistsError(absl::StrCat(flags.out, ": is there"));
  SH_ASSIGN_OR_RETURN(const ModelFiles files, OpenModelFiles(flags.model));
  SH_ASSIGN_OR_RETURN(const std::vector<at::Tensor> documents,
                      ReadDocuments(flags.ids, files.config));
  SH_ASSIGN_OR_RETURN_AT(
      const DecoderWeights weights,
      LoadDecoder(files, flags.dtype == "fp32" ? at::kFloat : at::kBFloat16, ShowLoading()),
      flags.model);
  // Under another name until it is whole.
  const std::string unfinished = absl::StrCat(flags.out, ".", getpid(), ".tmp");
  absl::Status status = WriteFile(weights, documents, unfinished);
  if (status.ok() && std::rename(unfinished.c_str(), flags.out.c_str()) != 0) {
    status = ErrnoStatus("renaming to", flags.out);
  }
  if (!status.ok()) unlink(unfinished.c_str());
  return status;
}

}  // namespace stillhouse

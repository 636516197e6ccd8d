#include "teacher_pool/artefacts.h"

#include <utility>

#include "common/file.h"
#include "common/status.h"
#include "formats/safetensors.h"
#include "model/torch_status.h"

namespace stillhouse {
namespace {

absl::Status AppendTensor(const at::Tensor& tensor, SafetensorsWriter& writer) {
  at::Tensor bits;
  SH_RETURN_IF_ERROR(CallTorch([&] { bits = tensor.to(at::kBFloat16).contiguous(); }));
  return writer.Append(absl::string_view(static_cast<const char*>(bits.const_data_ptr()),
                                         static_cast<size_t>(bits.nbytes())));
}

absl::StatusOr<std::string> HeadFile(const TeacherBackend& backend, const std::string& folder) {
  const std::string path = JoinPath(folder, "lm_head.safetensors");
  const ModelConfig& config = backend.config();
  SH_ASSIGN_OR_RETURN(
      const std::unique_ptr<SafetensorsWriter> writer,
      SafetensorsWriter::Create(
          path, {{.name = "lm_head.weight",
                  .dtype = "BF16",
                  .shape = {config.vocab_size, config.hidden_size}},
                 {.name = "norm.weight", .dtype = "BF16", .shape = {config.hidden_size}}}));
  SH_RETURN_IF_ERROR(AppendTensor(backend.head(), *writer));
  SH_RETURN_IF_ERROR(AppendTensor(backend.final_norm(), *writer));
  SH_RETURN_IF_ERROR(writer->Close());
  return ReadFile(path);
}

}  // namespace

absl::StatusOr<std::vector<Artefact>> MakeArtefacts(const TeacherBackend& backend,
                                                    const Tokenizer& tokenizer) {
  SH_ASSIGN_OR_RETURN(const TempFolder folder, TempFolder::Create("artefacts"));
  SH_ASSIGN_OR_RETURN_AT(std::string head, HeadFile(backend, folder.path()), "writing the head");
  SH_RETURN_IF_ERROR_AT(tokenizer.WriteFiles(folder.path()), "writing the tokenizer");
  SH_ASSIGN_OR_RETURN(std::string json, ReadFile(JoinPath(folder.path(), "tokenizer.json")));
  std::vector<Artefact> artefacts;
  artefacts.push_back({kHeadArtefact, std::make_shared<const std::string>(std::move(head))});
  artefacts.push_back({kTokenizerArtefact, std::make_shared<const std::string>(std::move(json))});
  return artefacts;
}

}  // namespace stillhouse

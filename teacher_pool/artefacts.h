// Artefacts: what students need of a teacher besides sections.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "formats/tokenizer.h"
#include "teacher_pool/teacher_backend.h"

namespace stillhouse {

// Stored once, before the first chunk, as ArtefactObjectName(teacher, name).
struct Artefact {
  std::string name;
  std::shared_ptr<const std::string> bytes;
};

inline constexpr char kHeadArtefact[] = "lm_head/bf16";
inline constexpr char kTokenizerArtefact[] = "tokenizer";

// kHeadArtefact: a safetensors file with "lm_head.weight" [V, H] and "norm.weight" [H], both bf16.
// kTokenizerArtefact: the text of tokenizer.json. Both pass through files in a private folder.
absl::StatusOr<std::vector<Artefact>> MakeArtefacts(const TeacherBackend& backend,
                                                    const Tokenizer& tokenizer);

}  // namespace stillhouse

// teacher_recompute: computes batches of a plan again, for an audit of what was captured.
//
// Writes to standard output, for each --batch in order, the number of bytes (u64, little endian) of
// an export file (docs/formats.md) and then that file: the parts of all sections of the batch.
//
// Exit codes: 0, 2 the command line is wrong, else ExitCodeFor.
#include <unistd.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/byte_io.h"
#include "common/command_line.h"
#include "common/fd.h"
#include "common/log.h"
#include "common/status.h"
#include "formats/model_files.h"
#include "model/decoder.h"
#include "model/parallel.h"
#include "storage/export_file.h"
#include "teacher_pool/captured_parts.h"
#include "teacher_pool/teacher_backend.h"

namespace stillhouse {
namespace {

struct Flags {
  std::string model;
  std::string dtype = "bf16";
  std::string plan;
  std::vector<std::string> batches;
  std::vector<std::string> sections, held_out_sections;
};

constexpr char kOutput[] = "standard output";

absl::StatusOr<CaptureRequest> RequestOf(const std::vector<std::string>& names,
                                         const ModelConfig& config) {
  std::vector<SectionSpec> specs;
  for (const std::string& name : names) {
    SH_ASSIGN_OR_RETURN(const SectionSpec spec, ParseSectionSpec(name));
    specs.push_back(spec);
  }
  return MakeCaptureRequest(specs, config);
}

// "CHUNK:BATCH"
absl::StatusOr<std::pair<PlanChunk, PlanBatch>> FindBatch(const Plan& plan,
                                                          const std::string& text) {
  const std::vector<std::string> words = absl::StrSplit(text, ':');
  uint32_t chunk = 0, batch = 0;
  if (words.size() == 2 && absl::SimpleAtoi(words[0], &chunk) &&
      absl::SimpleAtoi(words[1], &batch) && chunk < plan.chunk_count() &&
      batch < plan.chunk(chunk).batches.size()) {
    return std::make_pair(plan.chunk(chunk), plan.chunk(chunk).batches[batch]);
  }
  return absl::InvalidArgumentError(absl::StrCat("the plan has no batch ", text));
}

absl::Status Recompute(const Flags& flags) {
  SH_ASSIGN_OR_RETURN(const ModelFiles files, OpenModelFiles(flags.model));
  SH_ASSIGN_OR_RETURN(const Digest teacher, TeacherFingerprint(files, UserCacheFolder()));
  SH_ASSIGN_OR_RETURN_AT(const auto plan, OpenPlan(flags.plan), "plan");
  SH_ASSIGN_OR_RETURN(const CaptureRequest training, RequestOf(flags.sections, files.config));
  SH_ASSIGN_OR_RETURN(const CaptureRequest held_out,
                      RequestOf(flags.held_out_sections, files.config));
  LogInfo("loading ", flags.model, " (", flags.dtype, ")");
  const at::ScalarType dtype = flags.dtype == "fp32" ? at::kFloat : at::kBFloat16;
  SH_ASSIGN_OR_RETURN_AT(DecoderWeights weights, LoadDecoder(files, dtype), flags.model);
  const auto backend = MakeLocalBackend(std::move(weights));
  SH_ASSIGN_OR_RETURN(Capturer capturer, Capturer::Create(*backend, plan->vocabulary()));
  AdoptComputeThreads();
  for (const std::string& text : flags.batches) {
    SH_ASSIGN_OR_RETURN(const auto found, FindBatch(*plan, text));
    const CaptureRequest& request = found.first.held_out ? held_out : training;
    SH_ASSIGN_OR_RETURN(const auto documents,
                        capturer.Run(*plan, found.second, request, nullptr, [] {}));
    std::string file;
    ExportFileWriter writer(found.first.held_out ? flags.held_out_sections : flags.sections,
                            [&file](absl::string_view bytes) {
                              file.append(bytes.data(), bytes.size());
                              return absl::OkStatus();
                            });
    for (size_t s = 0; s < request.size(); ++s) {
      for (const Part& part : EncodeParts(*plan, teacher, request[s], s, documents)) {
        SH_RETURN_IF_ERROR(writer.Add(part, static_cast<uint32_t>(s)));
      }
    }
    SH_RETURN_IF_ERROR(writer.Finish());
    ByteWriter size;
    size.Put(static_cast<uint64_t>(file.size()));
    SH_RETURN_IF_ERROR(WriteAll(STDOUT_FILENO, size.Take(), kOutput));
    SH_RETURN_IF_ERROR(WriteAll(STDOUT_FILENO, file, kOutput));
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  CommandLine command_line("Computes batches of a plan again, for `coordinatorctl cache audit`.");
  Flags flags;
  command_line
      .AddOption("--model", &flags.model, "the teacher: a GGUF file or a Hugging Face folder")
      .Required();
  command_line.AddOption("--dtype", &flags.dtype, "to compute in")
      .OneOf({"bf16", "fp32"})
      .ShowDefault();
  command_line.AddOption("--plan", &flags.plan, "file of the plan").Required();
  command_line.AddOption("--batch", &flags.batches, "CHUNK:BATCH, any number of them").Required();
  command_line.AddOption("--section", &flags.sections, "of training documents, in canonical form");
  command_line.AddOption("--held-out-section", &flags.held_out_sections, "of held-out documents");
  if (const auto code = command_line.Parse(argc, argv)) return *code;
  SH_CHECK_OK(InitLog({.program = "teacher_recompute"}));
  const absl::Status status = Recompute(flags);
  if (!status.ok()) LogError(status.message());
  return ExitCodeFor(status);
}

}  // namespace
}  // namespace stillhouse

int main(int argc, char** argv) { return stillhouse::Main(argc, argv); }

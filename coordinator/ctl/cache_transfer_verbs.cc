#include "coordinator/ctl/cache_transfer_verbs.h"

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "common/command_line.h"
#include "common/status.h"
#include "coordinator/ctl/cache_session.h"
#include "coordinator/ctl/output.h"
#include "formats/model_files.h"
#include "formats/tokenizer.h"
#include "storage/service/job_export.h"
#include "storage/service/job_import.h"
#include "storage/service/plain_logits.h"

namespace stillhouse {
namespace {

using Json = nlohmann::ordered_json;

struct TransferOptions {
  CacheChoice choice;
  OutputFormat format = OutputFormat::kTable;
  std::string job;
  std::string folder;
  std::string name;
  std::string plain;
  std::string tokenizer;
};

uint64_t BytesOf(const ExportManifest& manifest) {
  uint64_t bytes = manifest.plan.bytes;
  for (const ExportArtefactInfo& artefact : manifest.artefacts) bytes += artefact.file.bytes;
  for (const ExportFileInfo& file : manifest.files) bytes += file.bytes;
  return bytes;
}

Json Describe(const ExportManifest& manifest, const std::string& folder) {
  return {{"job", manifest.job.name},
          {"folder", folder},
          {"digest", manifest.digest.Hex()},
          {"documents", manifest.documents},
          {"sections", manifest.sections},
          {"rows", manifest.rows},
          {"artefacts", manifest.artefacts.size()},
          {"section_files", manifest.files.size()},
          {"bytes", BytesOf(manifest)}};
}

std::string Summary(const ExportManifest& manifest, const std::string& folder) {
  return absl::StrCat(folder, ": ", Counted(manifest.documents, "document"), ", ",
                      Counted(manifest.sections, "section"), ", ", HumanBytes(BytesOf(manifest)),
                      ", digest ", manifest.digest.Hex());
}

absl::StatusOr<int> Export(const TransferOptions& options) {
  SH_ASSIGN_OR_RETURN(const auto cache, OpenCacheSession(options.choice));
  SH_ASSIGN_OR_RETURN(const ExportManifest manifest,
                      ExportJob(*cache, options.job, options.folder));
  PrintText(options.format == OutputFormat::kTable
                ? Summary(manifest, options.folder) + "\n"
                : Render(Describe(manifest, options.folder), options.format));
  return kExitOk;
}

absl::StatusOr<int> Import(const TransferOptions& options) {
  // Checked as a whole before the cache is so much as opened.
  SH_ASSIGN_OR_RETURN(const auto from, JobExport::Open(options.folder));
  SH_ASSIGN_OR_RETURN(const auto cache, OpenCacheSession(options.choice, CacheAccess::kWrite));
  const std::string name = options.name.empty() ? from->manifest().job.name : options.name;
  SH_ASSIGN_OR_RETURN(const ImportReport report, ImportJob(*from, name, *cache));
  SH_RETURN_IF_ERROR(cache->Close());
  if (options.format == OutputFormat::kTable) {
    PrintText(absl::StrCat("job ", name, ": ", report.stored, " parts stored, ", report.already,
                           " were there, digest ", from->manifest().digest.Hex(), "\n"));
    return kExitOk;
  }
  Json json = Describe(from->manifest(), options.folder);
  json["job"] = name;
  json["parts_stored"] = report.stored;
  json["parts_already"] = report.already;
  PrintText(Render(json, options.format));
  return kExitOk;
}

absl::StatusOr<int> Convert(const TransferOptions& options) {
  SH_ASSIGN_OR_RETURN_AT(const auto tokenizer, OpenTokenizer(options.tokenizer), "tokenizer");
  SH_ASSIGN_OR_RETURN(
      const auto plain,
      OpenPlainLogits(options.plain, {.fingerprint = tokenizer->Fingerprint(),
                                      .vocabulary = static_cast<uint32_t>(tokenizer->size())}));
  SH_ASSIGN_OR_RETURN(const ExportManifest manifest,
                      ExportJob(*plain, plain->job(), options.folder));
  Json json = Describe(manifest, options.folder);
  json["teacher"] = plain->teacher().Hex();
  PrintText(options.format == OutputFormat::kTable
                ? absl::StrCat(Summary(manifest, options.folder), ", teacher ",
                               plain->teacher().Hex(), "\n")
                : Render(json, options.format));
  return kExitOk;
}

}  // namespace

void AddCacheTransferVerbs(Command cache, ChosenVerb& chosen) {
  auto options = std::make_shared<TransferOptions>();
  const auto add = [&](const char* name, const char* what,
                       absl::StatusOr<int> (*verb)(const TransferOptions&)) {
    Command added = cache.AddCommand(name, what);
    AddCacheOptions(added, &options->choice);
    AddOutputOption(added, &options->format);
    added.OnParsed(
        [options, verb, &chosen] { chosen = [options, verb] { return verb(*options); }; });
    return added;
  };

  Command exported =
      add("export", "Write all that a job captured as a folder of plain files", Export);
  exported.AddOption("JOB", &options->job, "job, captured whole").Required();
  exported.AddOption("--to", &options->folder, "folder to make; nothing may be there").Required();
  exported.SetFooter(
      "It is written beside its place as FOLDER.tmp.XXXXXX (six letters or digits), renamed when "
      "it\n"
      "is whole; where an export was killed, that one is to be deleted.\n"
      "Other programs read it with tools/stillhouse.py; its bytes stand in docs/formats.md.\n"
      "Example:\n  coordinatorctl cache export handbook --to handbook.export --dir cache\n");

  Command imported = add("import", "Store an exported job in a cache", Import);
  imported.AddOption("FOLDER", &options->folder, "what `cache export` wrote").Required();
  imported.AddOption("--as", &options->name, "name of the job in this cache; default: its own");
  imported.SetFooter(
      "All of the export is read and checked before any of it is stored; exit code 7 when it is "
      "damaged.\n"
      "May be run again after it was interrupted. A --dir that is not there is made.\n"
      "Example:\n  coordinatorctl cache import handbook.export --dir cache\n");

  Command converted =
      cache.AddCommand("convert", "Make an export of logits that another program captured");
  converted.AddOption("FOLDER", &options->plain, "plain arrays (docs/formats.md)").Required();
  converted.AddOption("--to", &options->folder, "folder to make; nothing may be there").Required();
  converted.AddOption("--tokenizer", &options->tokenizer, "model, or folder of its tokenizer.json")
      .Required();
  AddOutputOption(converted, &options->format);
  converted.OnParsed([options, &chosen] { chosen = [options] { return Convert(*options); }; });
  converted.SetFooter(
      "tools/import_distillkit.py runs it; `cache import` takes what it makes.\n"
      "Example:\n  coordinatorctl cache convert plain --to other.export --tokenizer MODEL\n");
}

}  // namespace stillhouse

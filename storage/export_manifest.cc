#include "storage/export_manifest.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"
#include "common/status.h"
#include "storage/export_file.h"

namespace stillhouse {
namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

constexpr char kFormat[] = "stillhouse export";
constexpr int kVersion = 1;
constexpr size_t kArtefactsMax = 1000;
constexpr size_t kFilesMax = 1'000'000;
constexpr size_t kJobNameBytesMax = 64;
constexpr size_t kArtefactNameBytesMax = 256;

absl::Status Malformed(absl::string_view what) {
  return absl::DataLossError(absl::StrCat("malformed ", kExportManifestName, ": ", what));
}

OrderedJson FileJson(const std::string& name, const ExportFileInfo& file) {
  return {{"name", name}, {"bytes", file.bytes}, {"sha256", file.sha256.Hex()}};
}

const Json& Member(const Json& object, const char* key) {
  static const Json kNone;
  if (!object.is_object()) return kNone;
  const auto it = object.find(key);
  return it == object.end() ? kNone : *it;
}

absl::Status ReadNumber(const Json& object, const char* key, uint64_t max, uint64_t* value) {
  const Json& member = Member(object, key);
  if (!member.is_number_unsigned() || member.get<uint64_t>() > max) {
    return Malformed(absl::StrCat(key, " is no number from 0 to ", max));
  }
  *value = member.get<uint64_t>();
  return absl::OkStatus();
}

absl::Status ReadDigest(const Json& object, const char* key, Digest* digest) {
  const Json& member = Member(object, key);
  if (!member.is_string()) return Malformed(absl::StrCat(key, " is missing"));
  const absl::StatusOr<Digest> parsed = DigestFromHex(member.get_ref<const std::string&>());
  if (!parsed.ok()) return Malformed(absl::StrCat(key, ": ", parsed.status().message()));
  *digest = *parsed;
  return absl::OkStatus();
}

bool IsArtefactName(absl::string_view name) {
  return !name.empty() && name.size() <= kArtefactNameBytesMax &&
         std::all_of(name.begin(), name.end(), absl::ascii_isgraph);
}

absl::Status ReadFileInfo(const Json& object, uint64_t bytes_max, ExportFileInfo* file) {
  SH_RETURN_IF_ERROR(ReadNumber(object, "bytes", bytes_max, &file->bytes));
  return ReadDigest(object, "sha256", &file->sha256);
}

absl::Status ReadList(const Json& json, const char* key, size_t max, const Json** list) {
  *list = &Member(json, key);
  if (!(*list)->is_array() || (*list)->size() > max) {
    return Malformed(absl::StrCat(key, " is no list of at most ", max));
  }
  return absl::OkStatus();
}

// A job object nests no deeper; what does is not handed to functions that recurse.
bool IsShallow(const Json& job) {
  const auto plain = [](const Json& value) { return !value.is_structured(); };
  return std::all_of(job.begin(), job.end(), [&](const Json& member) {
    return plain(member) || (member.is_array() && std::all_of(member.begin(), member.end(), plain));
  });
}

absl::Status ReadAll(const Json& json, ExportManifest* manifest) {
  if (Member(json, "format") != kFormat) return Malformed("it is of another kind");
  uint64_t version = 0;
  SH_RETURN_IF_ERROR(ReadNumber(json, "version", UINT32_MAX, &version));
  if (version != kVersion) {
    return Malformed(absl::StrCat("version ", version, "; this program reads ", kVersion));
  }
  const Json& described = Member(json, "job");
  if (!described.is_object() || !IsShallow(described)) return Malformed("job is no job object");
  const absl::StatusOr<JobObject> job = ParseJobObject(described.dump());
  if (!job.ok()) return Malformed(job.status().message());
  if (!IsJobName(job->name)) return Malformed("the job's name is none of a recipe");
  manifest->job = *job;
  uint64_t documents = 0;
  SH_RETURN_IF_ERROR(ReadNumber(json, "documents", UINT32_MAX, &documents));
  manifest->documents = static_cast<uint32_t>(documents);
  SH_RETURN_IF_ERROR(ReadNumber(json, "sections", UINT64_MAX, &manifest->sections));
  SH_RETURN_IF_ERROR(ReadNumber(json, "rows", UINT64_MAX, &manifest->rows));
  SH_RETURN_IF_ERROR(ReadDigest(json, "digest", &manifest->digest));
  SH_RETURN_IF_ERROR(ReadFileInfo(Member(json, "plan"), kExportObjectBytesMax, &manifest->plan));
  const Json* list = nullptr;
  SH_RETURN_IF_ERROR(ReadList(json, "artefacts", kArtefactsMax, &list));
  for (const Json& entry : *list) {
    ExportArtefactInfo artefact;
    const Json& name = Member(entry, "artefact");
    if (!name.is_string() || !IsArtefactName(name.get_ref<const std::string&>())) {
      return Malformed("an artefact has no name");
    }
    artefact.artefact = name.get<std::string>();
    if (!manifest->artefacts.empty() && manifest->artefacts.back().artefact >= artefact.artefact) {
      return Malformed("artefacts are not in order");
    }
    SH_RETURN_IF_ERROR(ReadFileInfo(entry, kExportObjectBytesMax, &artefact.file));
    manifest->artefacts.push_back(std::move(artefact));
  }
  SH_RETURN_IF_ERROR(ReadList(json, "files", kFilesMax, &list));
  for (const Json& entry : *list) {
    SH_RETURN_IF_ERROR(ReadFileInfo(entry, kExportFileBytesMax, &manifest->files.emplace_back()));
  }
  return absl::OkStatus();
}

}  // namespace

bool IsJobName(absl::string_view name) {
  return !name.empty() && name.size() <= kJobNameBytesMax && name[0] != '-' && name[0] != '_' &&
         std::all_of(name.begin(), name.end(), [](unsigned char c) {
           return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '_' || c == '-';
         });
}

std::string ExportPlanFile() { return "plan.bin"; }
std::string ExportArtefactFile(size_t number) {
  return absl::StrFormat("artefact-%03d.bin", number);
}
std::string ExportSectionsFile(size_t number) {
  return absl::StrFormat("sections-%06d.bin", number);
}

std::vector<std::string> ExportSpecs(const JobObject& job) {
  std::set<std::string> names;
  for (const SectionSpec& spec : job.sections) names.insert(spec.Canonical());
  for (const SectionSpec& spec : job.held_out_sections) names.insert(spec.Canonical());
  return {names.begin(), names.end()};
}

std::string EncodeExportManifest(const ExportManifest& manifest) {
  OrderedJson json = {{"format", kFormat},
                      {"version", kVersion},
                      {"job", OrderedJson::parse(EncodeJobObject(manifest.job))},
                      {"documents", manifest.documents},
                      {"sections", manifest.sections},
                      {"rows", manifest.rows},
                      {"digest", manifest.digest.Hex()},
                      {"plan", FileJson(ExportPlanFile(), manifest.plan)},
                      {"artefacts", OrderedJson::array()},
                      {"files", OrderedJson::array()}};
  for (size_t i = 0; i < manifest.artefacts.size(); ++i) {
    OrderedJson entry = FileJson(ExportArtefactFile(i), manifest.artefacts[i].file);
    entry["artefact"] = manifest.artefacts[i].artefact;
    json["artefacts"].push_back(std::move(entry));
  }
  for (size_t i = 0; i < manifest.files.size(); ++i) {
    json["files"].push_back(FileJson(ExportSectionsFile(i), manifest.files[i]));
  }
  return json.dump(2, ' ', /*ensure_ascii=*/false, OrderedJson::error_handler_t::replace) + "\n";
}

absl::StatusOr<ExportManifest> ParseExportManifest(absl::string_view bytes) {
  if (bytes.size() > kExportManifestBytesMax) return Malformed("it is larger than 64 MiB");
  const Json json =
      Json::parse(bytes.begin(), bytes.end(), /*cb=*/nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return Malformed("it is no JSON object");
  ExportManifest manifest;
  SH_RETURN_IF_ERROR(ReadAll(json, &manifest));
  // File names among the rest: one text for one export.
  if (EncodeExportManifest(manifest) != bytes) {
    return Malformed("it is not written as this version writes it");
  }
  return manifest;
}

}  // namespace stillhouse

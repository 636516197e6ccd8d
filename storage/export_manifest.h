// MANIFEST.json of an exported job: what the folder holds, file by file. Grammar in
// docs/formats.md.
//
// Nothing in it tells of time, machine or the cache it came from: equal captures give equal bytes.
// File names follow from the kind and number of a file, so a manifest cannot name a file elsewhere.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/digest.h"
#include "storage/job_object.h"

namespace stillhouse {

inline constexpr char kExportManifestName[] = "MANIFEST.json";
inline constexpr uint64_t kExportManifestBytesMax = 64ull << 20;
// Of a plan or an artefact, which is read into memory.
inline constexpr uint64_t kExportObjectBytesMax = 16ull << 30;

struct ExportFileInfo {
  uint64_t bytes = 0;
  Digest sha256;
};
struct ExportArtefactInfo {
  std::string artefact;  // its name below artefact/<teacher>/
  ExportFileInfo file;
};

struct ExportManifest {
  JobObject job;
  uint32_t documents = 0;
  uint64_t sections = 0;  // that the job wants, each once
  uint64_t rows = 0;      // of all these sections
  Digest digest;          // of the job
  ExportFileInfo plan;
  std::vector<ExportArtefactInfo> artefacts;  // by name, ascending
  std::vector<ExportFileInfo> files;          // of sections, in order
};

// As recipes name jobs; the name becomes that of folders and sockets.
bool IsJobName(absl::string_view name);

std::string ExportPlanFile();                   // "plan.bin"
std::string ExportArtefactFile(size_t number);  // "artefact-000.bin"
std::string ExportSectionsFile(size_t number);  // "sections-000000.bin"

// The canonical names of the job's sections, each once, ascending: the list of every export file.
std::vector<std::string> ExportSpecs(const JobObject& job);

std::string EncodeExportManifest(const ExportManifest& manifest);
// DataLoss names what is wrong. Only the very bytes that EncodeExportManifest gives are taken.
absl::StatusOr<ExportManifest> ParseExportManifest(absl::string_view bytes);

}  // namespace stillhouse

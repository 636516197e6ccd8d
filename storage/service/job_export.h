// Exports of jobs: everything that a job wants of a cache as a folder of plain files
// (docs/formats.md), for other machines and other programs.
//
// Equal captures give equal folders, byte for byte, whatever cache they come from: neither time nor
// place, segments, order of capture nor the producer of a part enters. (An artefact that only one
// of two caches holds is in the export of that one only.)
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "storage/export_file.h"
#include "storage/export_manifest.h"
#include "storage/service/job_store.h"

namespace stillhouse {

struct ExportOptions {
  uint64_t file_bytes_max = kExportFileBytesMax;
};
// Writes `folder`, whole and synced, or nothing; every part is decoded on its way. NotFound when
// the cache has no such job, FailedPrecondition when some of it is not captured, AlreadyExists when
// something is at `folder`, ResourceExhausted when the disk is full.
absl::StatusOr<ExportManifest> ExportJob(JobSource& store, const std::string& job,
                                         const std::string& folder,
                                         const ExportOptions& options = {});

}  // namespace stillhouse

// The folder of an export: written beside its place and renamed when whole; read without following
// anything out of it.
//
// Not thread-safe. Errors name the file.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/digest.h"
#include "storage/export_manifest.h"

namespace stillhouse {

// Owns a folder "<target>.tmp.<random>" until Finish; dropped before, it leaves nothing behind.
class ExportFolderWriter {
 public:
  // AlreadyExists when something is at `target`.
  static absl::StatusOr<std::unique_ptr<ExportFolderWriter>> Create(const std::string& target);
  ~ExportFolderWriter();

  // One file at a time: Begin, Append…, End, which syncs it and tells its size and hash.
  absl::Status Begin(const std::string& name);
  absl::Status Append(absl::string_view bytes);
  absl::StatusOr<ExportFileInfo> End();
  absl::StatusOr<ExportFileInfo> Write(const std::string& name, absl::string_view bytes);

  // Durable under its own name, or an error and nothing there. REQUIRES: nothing follows.
  absl::Status Finish();

 private:
  ExportFolderWriter(std::string target, std::string partial)
      : target_(std::move(target)), partial_(std::move(partial)) {}

  const std::string target_;
  std::string partial_;  // "" when finished
  std::string path_;     // of the file being written
  int fd_ = -1;
  uint64_t bytes_ = 0;
  std::unique_ptr<Sha256> sha_;
};

// A file that was open()ed as what it is: regular, and no link.
class ExportInputFile {
 public:
  ExportInputFile(std::string path, int fd, uint64_t bytes)
      : path_(std::move(path)), fd_(fd), bytes_(bytes) {}
  ~ExportInputFile();
  ExportInputFile(const ExportInputFile&) = delete;
  ExportInputFile& operator=(const ExportInputFile&) = delete;

  const std::string& path() const { return path_; }
  uint64_t bytes() const { return bytes_; }  // when it was opened
  // DataLoss if the file is shorter by now.
  absl::Status ReadAt(uint64_t offset, size_t size, char* out) const;
  absl::StatusOr<Digest> Hash() const;
  absl::StatusOr<std::shared_ptr<const std::string>> ReadAll() const;

 private:
  const std::string path_;
  const int fd_;
  const uint64_t bytes_;
};

class ExportFolderReader {
 public:
  // NotFound when there is no such folder.
  static absl::StatusOr<std::unique_ptr<ExportFolderReader>> Open(const std::string& path);
  ~ExportFolderReader();

  // DataLoss unless there is a regular file of that name directly in the folder.
  absl::StatusOr<std::unique_ptr<ExportInputFile>> OpenFile(const std::string& name) const;
  // The same, and DataLoss unless it has the size stated.
  absl::StatusOr<std::unique_ptr<ExportInputFile>> OpenFile(const std::string& name,
                                                            const ExportFileInfo& info) const;

 private:
  ExportFolderReader(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  const std::string path_;
  const int fd_;
};

}  // namespace stillhouse

#include "student/checkpoint.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <tuple>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "common/file.h"
#include "common/log.h"
#include "common/status.h"
#include "formats/json.h"

namespace stillhouse {
namespace {

constexpr char kMagic[] = "SHSTATE1";
constexpr size_t kHeaderBytes = 64;
constexpr int kVersion = 1;
constexpr char kManifest[] = "MANIFEST.json";
constexpr char kUnfinished[] = ".tmp";
constexpr uint64_t kManifestBytesMax = 64ull << 20;
constexpr size_t kWriteBytes = 8 << 20;  // at a time, hashed while it is in the cache

std::string ShardName() { return "rank-0-of-1.state"; }

// A file that is hashed as it is written.
class HashedFile {
 public:
  ~HashedFile() {
    if (fd_ >= 0) close(fd_);
  }
  absl::Status Open(const std::string& path) {
    path_ = path;
    fd_ = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    return fd_ < 0 ? ErrnoStatus("creating", path_) : absl::OkStatus();
  }
  absl::Status Append(const void* data, size_t size) {
    const char* next = static_cast<const char*>(data);
    while (size > 0) {
      const size_t piece = std::min(size, kWriteBytes);
      hash_.AddRaw(next, piece);
      for (size_t done = 0; done < piece;) {
        const ssize_t wrote = write(fd_, next + done, piece - done);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote < 0) return ErrnoStatus("writing", path_);
        done += static_cast<size_t>(wrote);
      }
      next += piece;
      size -= piece;
      bytes_ += piece;
    }
    return absl::OkStatus();
  }
  absl::Status Close() {
    if (fsync(fd_) != 0) return ErrnoStatus("syncing", path_);
    if (close(std::exchange(fd_, -1)) != 0) return ErrnoStatus("closing", path_);
    return absl::OkStatus();
  }
  uint64_t bytes() const { return bytes_; }
  Digest Finish() { return hash_.Finish(); }

 private:
  std::string path_;
  int fd_ = -1;
  uint64_t bytes_ = 0;
  Sha256 hash_;
};

std::string ShardHeader(uint64_t elements, uint64_t begin, uint64_t end) {
  std::string bytes(kHeaderBytes, '\0');
  std::memcpy(bytes.data(), kMagic, 8);
  const uint64_t fields[] = {elements, begin, end};
  std::memcpy(bytes.data() + 8, fields, sizeof(fields));
  return bytes;
}

OrderedJson ManifestOf(const RunProgress& progress, const FlatLayout& layout) {
  OrderedJson json;
  json["version"] = kVersion;
  json["run_hash"] = progress.run_hash.Hex();
  json["step"] = progress.step;
  json["data"] = {{"epoch", progress.data.epoch}, {"index", progress.data.index}};
  json["randomness"] = {{"seed", progress.seed}};
  json["teacher_layers"] = progress.teacher_layers;
  json["seconds"] = progress.seconds;
  json["waited_s"] = progress.waited_s;
  json["early_stop"] = {{"best", progress.best},
                        {"best_step", progress.best_step},
                        {"evaluations", progress.evaluations},
                        {"without_gain", progress.evaluations_without_gain}};
  json["world_size"] = 1;
  json["elements"] = layout.size();
  OrderedJson parameters = OrderedJson::array();
  for (const FlatParameter& parameter : layout.parameters()) {
    parameters.push_back({parameter.name, parameter.count, parameter.offset});
  }
  json["layout"] = std::move(parameters);
  return json;
}

std::string DigestOf(OrderedJson json) {
  json.erase("digest");
  return Sha256Of(json.dump()).Hex();
}

absl::Status Refused(absl::string_view what) { return absl::DataLossError(what); }

// JSON's conversions would take -1 for 2^64 - 1.
absl::StatusOr<uint64_t> Count(const OrderedJson& json, const char* key) {
  const OrderedJson& value = json.at(key);
  if (value.is_number_unsigned()) return value.get<uint64_t>();
  return Refused(absl::StrCat(key, " is no count"));
}

absl::StatusOr<double> Duration(const OrderedJson& json, const char* key) {
  const double value = json.at(key).get<double>();
  if (std::isfinite(value) && value >= 0) return value;
  return Refused(absl::StrCat(key, " is no duration"));
}

absl::StatusOr<RunProgress> ProgressOf(const OrderedJson& json) {
  RunProgress progress;
  SH_ASSIGN_OR_RETURN(progress.run_hash, DigestFromHex(json.at("run_hash").get<std::string>()));
  SH_ASSIGN_OR_RETURN(progress.step, Count(json, "step"));
  SH_ASSIGN_OR_RETURN(progress.data.epoch, Count(json.at("data"), "epoch"));
  SH_ASSIGN_OR_RETURN(progress.data.index, Count(json.at("data"), "index"));
  SH_ASSIGN_OR_RETURN(progress.seed, Count(json.at("randomness"), "seed"));
  progress.teacher_layers = json.at("teacher_layers").get<std::vector<int64_t>>();
  SH_ASSIGN_OR_RETURN(progress.seconds, Duration(json, "seconds"));
  SH_ASSIGN_OR_RETURN(progress.waited_s, Duration(json, "waited_s"));
  const OrderedJson& stop = json.at("early_stop");
  progress.best = stop.at("best").get<double>();
  SH_ASSIGN_OR_RETURN(progress.best_step, Count(stop, "best_step"));
  SH_ASSIGN_OR_RETURN(progress.evaluations, Count(stop, "evaluations"));
  SH_ASSIGN_OR_RETURN(progress.evaluations_without_gain, Count(stop, "without_gain"));
  return progress;
}

// Whether `step` steps can have read as far as `data`: each takes a document at least.
bool IsReachable(const DataPosition& data, uint64_t step, const CheckpointRules& rules) {
  if (data.index >= rules.epoch_documents || rules.epoch_rows == 0) return false;
  uint64_t rows_max = 0;
  if (__builtin_mul_overflow(step, rules.step_rows, &rows_max)) rows_max = UINT64_MAX;
  if (data.epoch > rows_max / rules.epoch_rows) return false;
  uint64_t documents = 0;
  if (__builtin_mul_overflow(data.epoch, rules.epoch_documents, &documents)) return true;
  return __builtin_add_overflow(documents, data.index, &documents) || documents >= step;
}

// Numbers that a run could not have written, though their digest is right.
absl::Status CheckProgress(const RunProgress& progress, uint64_t named_step,
                           const CheckpointRules& rules) {
  if (progress.step != named_step) {
    return Refused(absl::StrCat("step ", progress.step, " is not the one of its folder's name"));
  }
  if (progress.step > rules.steps) {
    return Refused(absl::StrCat("step ", progress.step, " of ", rules.steps));
  }
  if (!IsReachable(progress.data, progress.step, rules)) {
    return Refused(absl::StrCat("document ", progress.data.index, " of epoch ", progress.data.epoch,
                                " is not where step ", progress.step, " of this plan can end"));
  }
  if (progress.seed != rules.seed) return Refused("its seed is not the recipe's");
  if (progress.teacher_layers != rules.teacher_layers) {
    return Refused("it began from other layers of the teacher than its run");
  }
  if (!std::isfinite(progress.best) || progress.best_step > progress.step ||
      progress.evaluations > progress.step + 1 ||
      progress.evaluations_without_gain > progress.evaluations) {
    return Refused("early_stop is not possible");
  }
  return absl::OkStatus();
}

// The manifest, whole and unchanged, or DataLoss naming the file.
absl::StatusOr<OrderedJson> ReadManifest(const std::string& folder) {
  const std::string path = JoinPath(folder, kManifest);
  SH_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kManifestBytesMax));
  const OrderedJson json = OrderedJson::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("digest") || !json["digest"].is_string() ||
      json["digest"].get<std::string>() != DigestOf(json)) {
    return absl::DataLossError(absl::StrCat(path, ": damaged: its digest does not match"));
  }
  return json;
}

absl::Status CheckLayout(const OrderedJson& json, const FlatLayout& layout,
                         const std::string& folder) {
  const OrderedJson& stored = json.at("layout");
  bool same = stored.size() == layout.parameters().size() &&
              json.at("elements").get<size_t>() == layout.size();
  for (size_t i = 0; same && i < stored.size(); ++i) {
    const FlatParameter& parameter = layout.parameters()[i];
    same = stored[i].at(0).get<std::string>() == parameter.name &&
           stored[i].at(1).get<size_t>() == parameter.count &&
           stored[i].at(2).get<size_t>() == parameter.offset;
  }
  if (same) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(folder, ": its parameters are not those of this student"));
}

struct ParsedName {
  uint64_t step = 0, epoch = 0;
  bool unfinished = false;
};
// nullopt for what is not a checkpoint's name.
std::optional<ParsedName> ParseName(absl::string_view name) {
  ParsedName parsed;
  parsed.unfinished = absl::ConsumeSuffix(&name, kUnfinished);
  if (!absl::ConsumePrefix(&name, "step-")) return std::nullopt;
  const std::vector<absl::string_view> parts = absl::StrSplit(name, '.');
  if (parts.size() != 3 || !absl::SimpleAtoi(parts[0], &parsed.step) ||
      !absl::SimpleAtoi(parts[1], &parsed.epoch)) {
    return std::nullopt;
  }
  return parsed;
}

}  // namespace

CheckpointStore::CheckpointStore(std::string run_folder, Fault fault)
    : folder_(JoinPath(run_folder, "checkpoints")), fault_(std::move(fault)) {}

absl::Status CheckpointStore::At(absl::string_view step) {
  return fault_ == nullptr ? absl::OkStatus() : fault_(step);
}

absl::Status CheckpointStore::WriteInto(const std::string& folder, const RunProgress& progress,
                                        const StudentState& state) {
  SH_RETURN_IF_ERROR(At("shard"));
  HashedFile shard;
  SH_RETURN_IF_ERROR(shard.Open(JoinPath(folder, ShardName())));
  const size_t n = state.layout.size();
  const std::string header = ShardHeader(n, 0, n);
  SH_RETURN_IF_ERROR(shard.Append(header.data(), header.size()));
  for (const FlatBuffer<float>* buffer : {&state.masters, &state.first, &state.second}) {
    SH_RETURN_IF_ERROR(shard.Append(buffer->data(), n * sizeof(float)));
  }
  SH_RETURN_IF_ERROR(shard.Close());
  OrderedJson manifest = ManifestOf(progress, state.layout);
  manifest["files"] = {
      {{"name", ShardName()}, {"bytes", shard.bytes()}, {"sha256", shard.Finish().Hex()}}};
  manifest["digest"] = DigestOf(manifest);
  SH_RETURN_IF_ERROR(At("manifest"));
  HashedFile file;
  SH_RETURN_IF_ERROR(file.Open(JoinPath(folder, kManifest)));
  const std::string text = manifest.dump(1) + "\n";
  SH_RETURN_IF_ERROR(file.Append(text.data(), text.size()));
  SH_RETURN_IF_ERROR(file.Close());
  return FsyncFolder(folder);
}

absl::StatusOr<std::string> CheckpointStore::Write(const RunProgress& progress,
                                                   const StudentState& state, uint64_t run_epoch) {
  SH_RETURN_IF_ERROR(MakeFolders(folder_));
  uint32_t nonce = 0;  // only so that two processes never choose one name
  SH_CHECK(getrandom(&nonce, sizeof(nonce), 0) == sizeof(nonce), "no randomness");
  const std::string name = absl::StrFormat("step-%d.%d.%08x", progress.step, run_epoch, nonce);
  const std::string final_path = JoinPath(folder_, name);
  const std::string path = final_path + kUnfinished;
  SH_RETURN_IF_ERROR(At("folder"));
  SH_RETURN_IF_ERROR(MakeFolders(path));
  const absl::Status written = WriteInto(path, progress, state);
  if (!written.ok()) {
    // A full disk must not stay full for our sake; for an injected crash the folder stays, as it
    // would.
    if (absl::IsResourceExhausted(written)) RemoveTree(path).IgnoreError();
    return Annotate(written, "writing a checkpoint");
  }
  SH_RETURN_IF_ERROR(At("rename"));
  if (rename(path.c_str(), final_path.c_str()) != 0) return ErrnoStatus("renaming", path);
  SH_RETURN_IF_ERROR(At("sync"));
  SH_RETURN_IF_ERROR(FsyncFolder(folder_));
  return name;
}

absl::StatusOr<RunProgress> CheckpointStore::Read(const std::string& name,
                                                  const CheckpointRules& rules,
                                                  StudentState* state) const {
  const std::string folder = JoinPath(folder_, name);
  const std::optional<ParsedName> parsed = ParseName(name);
  if (!parsed.has_value() || parsed->unfinished) {
    return absl::DataLossError(absl::StrCat(folder, ": not the name of a checkpoint"));
  }
  if (!PathExists(folder)) return absl::NotFoundError(absl::StrCat(folder, ": no such checkpoint"));
  try {
    SH_ASSIGN_OR_RETURN(const OrderedJson json, ReadManifest(folder));
    if (json.at("version").get<int>() != kVersion || json.at("world_size").get<int>() != 1) {
      return absl::UnimplementedError(
          absl::StrCat(folder, ": written by a version or a number of ranks that this one lacks"));
    }
    const std::string manifest = JoinPath(folder, kManifest);
    SH_ASSIGN_OR_RETURN_AT(const RunProgress progress, ProgressOf(json), manifest);
    if (progress.run_hash != rules.run_hash) {
      return absl::FailedPreconditionError(absl::StrCat(folder, ": belongs to another run"));
    }
    SH_RETURN_IF_ERROR_AT(CheckProgress(progress, parsed->step, rules), manifest);
    SH_RETURN_IF_ERROR(CheckLayout(json, state->layout, folder));
    const OrderedJson& file = json.at("files").at(0);
    if (file.at("name").get<std::string>() != ShardName()) {
      return absl::DataLossError(absl::StrCat(manifest, ": names another file than ", ShardName()));
    }
    const std::string path = JoinPath(folder, ShardName());
    SH_ASSIGN_OR_RETURN(const auto map, MappedFile::Open(path));
    const size_t n = state->layout.size(), bytes = n * sizeof(float);
    if (map->bytes().size() != kHeaderBytes + 3 * bytes ||
        file.at("bytes").get<size_t>() != map->bytes().size()) {
      return absl::DataLossError(absl::StrCat(path, ": damaged: ", map->bytes().size(),
                                              " bytes, expected ", kHeaderBytes + 3 * bytes));
    }
    if (Sha256Of(map->bytes()).Hex() != file.at("sha256").get<std::string>() ||
        map->bytes().substr(0, kHeaderBytes) != ShardHeader(n, 0, n)) {
      return absl::DataLossError(absl::StrCat(path, ": damaged: its SHA-256 does not match"));
    }
    const char* next = map->bytes().data() + kHeaderBytes;
    for (FlatBuffer<float>* buffer : {&state->masters, &state->first, &state->second}) {
      std::memcpy(buffer->data(), next, bytes);
      next += bytes;
    }
    state->RoundWeights();
    return progress;
  } catch (const Json::exception& error) {
    return absl::DataLossError(absl::StrCat(folder, "/", kManifest, ": ", error.what()));
  }
}

absl::StatusOr<CheckpointStore::Found> CheckpointStore::ReadNewest(const std::string& committed,
                                                                   const CheckpointRules& rules,
                                                                   StudentState* state) const {
  std::vector<std::string> candidates = {committed};
  const std::optional<ParsedName> last = ParseName(committed);
  const absl::StatusOr<std::vector<std::string>> names = List();
  if (!names.ok()) LogError("looking for checkpoints: ", names.status().message());
  for (const std::string& name : names.ok() ? *names : std::vector<std::string>()) {
    if (name != committed && last.has_value() && ParseName(name)->step <= last->step) {
      candidates.push_back(name);
    }
  }
  absl::Status first;
  for (const std::string& name : candidates) {
    const absl::StatusOr<RunProgress> read = Read(name, rules, state);
    if (read.ok()) {
      if (name != committed) LogWarning("going on from the older checkpoint ", name, " instead");
      return Found{name, *read};
    }
    LogError("checkpoint refused: ", read.status().message());
    if (first.ok()) first = read.status();
  }
  return absl::DataLossError(
      absl::StrCat("none of the run's ", candidates.size(), " checkpoints can be read (",
                   first.message(), "): remove ", folder_, " to train the run from its start"));
}

bool CheckpointStore::FolderExists() const {
  struct stat info {};
  return lstat(folder_.c_str(), &info) == 0 || errno != ENOENT;
}

absl::StatusOr<std::vector<std::string>> CheckpointStore::List() const {
  if (!PathExists(folder_)) return std::vector<std::string>();
  SH_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(folder_));
  std::vector<std::tuple<uint64_t, uint64_t, std::string>> found;
  for (const std::string& name : names) {
    const auto parsed = ParseName(name);
    if (parsed.has_value() && !parsed->unfinished) {
      found.emplace_back(parsed->step, parsed->epoch, name);
    }
  }
  std::sort(found.rbegin(), found.rend());
  std::vector<std::string> sorted;
  for (auto& [step, epoch, name] : found) sorted.push_back(std::move(name));
  return sorted;
}

absl::Status CheckpointStore::Prune(const std::string& committed, size_t keep) {
  if (!PathExists(folder_)) return absl::OkStatus();
  SH_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(folder_));
  for (const std::string& name : names) {
    const auto parsed = ParseName(name);
    if (parsed.has_value() && parsed->unfinished) {
      SH_RETURN_IF_ERROR(RemoveTree(JoinPath(folder_, name)));
    }
  }
  SH_ASSIGN_OR_RETURN(const std::vector<std::string> complete, List());
  for (size_t i = keep; i < complete.size(); ++i) {
    if (complete[i] == committed) continue;
    SH_RETURN_IF_ERROR(RemoveTree(JoinPath(folder_, complete[i])));
  }
  return FsyncFolder(folder_);
}

}  // namespace stillhouse

#include "student/checkpoint.h"

#include <stdio.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/file.h"
#include "common/log.h"
#include "common/status.h"
#include "formats/json.h"
#include "student/shard_file.h"

namespace stillhouse {
namespace {

constexpr int kVersion = 2;
constexpr int kVersionOfOneRank = 1;  // without skipped steps
constexpr char kManifest[] = "MANIFEST.json";
constexpr char kUnfinished[] = ".tmp";
constexpr uint64_t kManifestBytesMax = 64ull << 20;

OrderedJson ManifestOf(const RunProgress& progress, const FlatLayout& layout, size_t ranks) {
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
  json["skipped"] = {{"total", progress.skipped.total}, {"in_a_row", progress.skipped.in_a_row}};
  json["world_size"] = ranks;
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
  if (json.at("version").get<int>() == kVersionOfOneRank) return progress;
  SH_ASSIGN_OR_RETURN(progress.skipped.total, Count(json.at("skipped"), "total"));
  SH_ASSIGN_OR_RETURN(progress.skipped.in_a_row, Count(json.at("skipped"), "in_a_row"));
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
  if (progress.skipped.total > progress.step ||
      progress.skipped.in_a_row > std::min(progress.skipped.total, kSkippedInARowMax)) {
    return Refused("so many skipped steps are not possible");
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

// The shards that the manifest names, all opened, which together are the whole flat buffer.
absl::StatusOr<std::vector<ShardFile>> OpenShards(const OrderedJson& json, size_t elements,
                                                  const std::string& folder) {
  const std::string manifest = JoinPath(folder, kManifest);
  const auto ranks = json.at("world_size").get<int>();
  const OrderedJson& stored = json.at("files");
  if (ranks < 1 || stored.size() != static_cast<size_t>(ranks)) {
    return absl::DataLossError(
        absl::StrCat(manifest, ": ", stored.size(), " files of ", ranks, " ranks"));
  }
  std::vector<ShardFile> files;
  std::vector<FlatRange> ranges;
  for (int rank = 0; rank < ranks; ++rank) {
    const OrderedJson& file = stored.at(static_cast<size_t>(rank));
    const std::string name = ShardName(rank, ranks);
    if (file.at("name").get<std::string>() != name) {
      return absl::DataLossError(absl::StrCat(manifest, ": names another file than ", name));
    }
    SH_ASSIGN_OR_RETURN(
        files.emplace_back(),
        ShardFile::Open(
            folder, {name, file.at("bytes").get<uint64_t>(), file.at("sha256").get<std::string>()},
            elements));
    for (const ShardPiece& piece : files.back().pieces()) ranges.push_back(piece.flat);
  }
  std::sort(ranges.begin(), ranges.end(),
            [](const FlatRange& a, const FlatRange& b) { return a.begin < b.begin; });
  size_t end = 0;
  for (const FlatRange& range : ranges) {
    if (range.begin != end) break;
    end = range.end;
  }
  if (end == elements) return files;
  for (const ShardFile& file : files) SH_RETURN_IF_ERROR(file.Verify());
  return absl::DataLossError(absl::StrCat(manifest, ": its shards are not the whole student"));
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

void RunProgress::NoteEvaluation(double value) {
  if (evaluations == 0 || value < best) {
    best = value;
    best_step = step;
    evaluations_without_gain = 0;
  } else {
    ++evaluations_without_gain;
  }
  ++evaluations;
}

CheckpointStore::CheckpointStore(std::string run_folder, Fault fault)
    : folder_(JoinPath(run_folder, "checkpoints")), fault_(std::move(fault)) {}

absl::Status CheckpointStore::At(absl::string_view step) {
  return fault_ == nullptr ? absl::OkStatus() : fault_(step);
}

absl::StatusOr<std::string> CheckpointStore::MakeFolder(const RunProgress& progress,
                                                        uint64_t run_epoch) {
  SH_RETURN_IF_ERROR(MakeFolders(folder_));
  uint32_t nonce = 0;  // only so that two processes never choose one name
  SH_CHECK(getrandom(&nonce, sizeof(nonce), 0) == sizeof(nonce), "no randomness");
  const std::string name = absl::StrFormat("step-%d.%d.%08x", progress.step, run_epoch, nonce);
  SH_RETURN_IF_ERROR(At("folder"));
  SH_RETURN_IF_ERROR(MakeFolders(absl::StrCat(JoinPath(folder_, name), kUnfinished)));
  return name;
}

// What the manifest will say of it, as words.
absl::StatusOr<std::string> CheckpointStore::WriteShard(const std::string& name,
                                                        const StudentState& state, int ranks) {
  SH_RETURN_IF_ERROR(At("shard"));
  SH_ASSIGN_OR_RETURN(
      const StoredFile shard,
      WriteShardFile(absl::StrCat(JoinPath(folder_, name), kUnfinished), ranks, state));
  return OrderedJson{{"name", shard.name}, {"bytes", shard.bytes}, {"sha256", shard.sha256}}.dump();
}

absl::Status CheckpointStore::Complete(const std::string& name, const RunProgress& progress,
                                       const FlatLayout& layout,
                                       const std::vector<std::string>& shards) {
  const std::string final_path = JoinPath(folder_, name);
  const std::string path = final_path + kUnfinished;
  OrderedJson manifest = ManifestOf(progress, layout, shards.size());
  manifest["files"] = OrderedJson::array();
  for (const std::string& shard : shards) manifest["files"].push_back(OrderedJson::parse(shard));
  manifest["digest"] = DigestOf(manifest);
  SH_RETURN_IF_ERROR(At("manifest"));
  SH_RETURN_IF_ERROR(WriteTextFile(path, kManifest, manifest.dump(1) + "\n").status());
  SH_RETURN_IF_ERROR(FsyncFolder(path));
  SH_RETURN_IF_ERROR(At("rename"));
  if (rename(path.c_str(), final_path.c_str()) != 0) return ErrnoStatus("renaming", path);
  SH_RETURN_IF_ERROR(At("sync"));
  return FsyncFolder(folder_);
}

absl::StatusOr<std::string> CheckpointStore::Write(const RunProgress& progress,
                                                   const StudentState& state, uint64_t run_epoch,
                                                   RankGroup& group) {
  const auto made = group.leads() ? MakeFolder(progress, run_epoch) : std::string();
  absl::StatusOr<std::string> name = group.FromLeader(made);
  absl::Status written = name.status();
  if (name.ok()) {
    const absl::StatusOr<std::vector<std::string>> shards =
        group.Exchange(WriteShard(*name, state, group.ranks()));
    written = shards.status();
    if (shards.ok()) {
      written = group.FromLeader(group.leads() ? Complete(*name, progress, state.layout, *shards)
                                               : absl::OkStatus());
    }
  }
  if (written.ok()) return name;
  // A full disk must not stay full for our sake; for an injected crash the folder stays, as it
  // would.
  if (name.ok() && group.leads() && absl::IsResourceExhausted(written)) {
    RemoveTree(absl::StrCat(JoinPath(folder_, *name), kUnfinished)).IgnoreError();
  }
  return Annotate(written, "writing a checkpoint");
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
    const auto version = json.at("version").get<int>();
    if (version != kVersion && version != kVersionOfOneRank) {
      return absl::UnimplementedError(
          absl::StrCat(folder, ": of version ", version, ", which this one does not read"));
    }
    const std::string manifest = JoinPath(folder, kManifest);
    SH_ASSIGN_OR_RETURN_AT(const RunProgress progress, ProgressOf(json), manifest);
    if (progress.run_hash != rules.run_hash) {
      return absl::FailedPreconditionError(absl::StrCat(folder, ": belongs to another run"));
    }
    SH_RETURN_IF_ERROR_AT(CheckProgress(progress, parsed->step, rules), manifest);
    SH_RETURN_IF_ERROR(CheckLayout(json, state->layout, folder));
    SH_ASSIGN_OR_RETURN(const std::vector<ShardFile> files,
                        OpenShards(json, state->layout.size(), folder));
    for (const ShardFile& file : files) {
      if (file.Overlaps(*state)) SH_RETURN_IF_ERROR(file.Verify());
    }
    for (const ShardFile& file : files) file.CopyInto(*state);
    state->RoundWeights();
    return progress;
  } catch (const Json::exception& error) {
    return absl::DataLossError(absl::StrCat(folder, "/", kManifest, ": ", error.what()));
  }
}

// `committed`, then the complete ones of no later step, newest first.
std::vector<std::string> CheckpointStore::Candidates(const std::string& committed) const {
  std::vector<std::string> candidates = {committed};
  const std::optional<ParsedName> last = ParseName(committed);
  const absl::StatusOr<std::vector<std::string>> names = List();
  if (!names.ok()) LogError("looking for checkpoints: ", names.status().message());
  for (const std::string& name : names.ok() ? *names : std::vector<std::string>()) {
    if (name != committed && last.has_value() && ParseName(name)->step <= last->step) {
      candidates.push_back(name);
    }
  }
  return candidates;
}

absl::StatusOr<CheckpointStore::Found> CheckpointStore::ReadNewest(const std::string& committed,
                                                                   const CheckpointRules& rules,
                                                                   StudentState* state,
                                                                   RankGroup& group) const {
  const std::string listed = group.leads() ? absl::StrJoin(Candidates(committed), "\n") : "";
  SH_ASSIGN_OR_RETURN(const std::string said,
                      group.FromLeader(absl::StatusOr<std::string>(listed)));
  const std::vector<std::string> candidates = absl::StrSplit(said, '\n');
  absl::Status first;
  for (const std::string& name : candidates) {
    const absl::StatusOr<RunProgress> read = Read(name, rules, state);
    const absl::Status agreed = group.Agree(read.status());
    if (agreed.ok()) {
      if (name != committed && group.leads())
        LogWarning("going on from the older checkpoint ", name, " instead");
      return Found{name, *read};
    }
    if (group.lost()) return agreed;
    if (group.leads()) LogError("checkpoint refused: ", agreed.message());
    if (first.ok()) first = agreed;
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

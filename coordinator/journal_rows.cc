#include "coordinator/journal_rows.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/byte_io.h"
#include "common/status.h"
#include "coordinator/journal_messages.h"

namespace stillhouse {
namespace {

constexpr absl::string_view kMagic = "SHJR";
constexpr uint32_t kVersion = 1;

// First letters put the rows in an order in which they can be read back.
constexpr absl::string_view kMetaKey = "a/meta";
constexpr absl::string_view kJobPrefix = "b/job/";
constexpr absl::string_view kJobStatePrefix = "c/state/";
constexpr absl::string_view kChunkPrefix = "d/chunk/";
constexpr absl::string_view kRunPrefix = "e/run/";
constexpr absl::string_view kQuarantinePrefix = "f/quarantine/";

std::string ChunkKeyPrefix(const std::string& job) { return absl::StrCat(kChunkPrefix, job, "/"); }

std::string ChunkKey(const std::string& job, uint32_t chunk) {
  std::string key = ChunkKeyPrefix(job);
  for (int shift = 24; shift >= 0; shift -= 8) key.push_back(static_cast<char>(chunk >> shift));
  return key;
}

std::string Wrap(absl::string_view key, std::string body) {
  ByteWriter writer;
  writer.PutRaw(kMagic);
  writer.Put<uint32_t>(kVersion);
  writer.PutRaw(body);
  Xxh3Stream checksum;
  checksum.Add(key);
  checksum.Add(writer.bytes());
  writer.Put<uint64_t>(checksum.Finish());
  return writer.Take();
}

absl::StatusOr<absl::string_view> Unwrap(absl::string_view key, absl::string_view value) {
  constexpr size_t kHead = 8, kTail = 8;
  if (value.size() < kHead + kTail) return absl::DataLossError("truncated");
  ByteReader tail(value.substr(value.size() - kTail));
  uint64_t stored = 0;
  tail.Get(&stored);
  Xxh3Stream checksum;
  checksum.Add(key);
  checksum.Add(value.substr(0, value.size() - kTail));
  if (checksum.Finish() != stored) return absl::DataLossError("checksum mismatch");
  if (!absl::StartsWith(value, kMagic)) return absl::DataLossError("not a row of a journal");
  ByteReader head(value.substr(kMagic.size()));
  uint32_t version = 0;
  head.Get(&version);
  if (version != kVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("written in version ", version, "; this program reads ", kVersion));
  }
  return value.substr(kHead, value.size() - kHead - kTail);
}

void Put(std::string key, std::string body, std::vector<JournalChange>* out) {
  std::string value = Wrap(key, std::move(body));
  out->push_back({JournalChange::Kind::kPut, std::move(key), std::move(value)});
}

void EncodeRow(const State& state, const RowRef& row, std::vector<JournalChange>* out) {
  switch (row.kind) {
    case RowRef::Kind::kEraseChunks: {
      const std::string prefix = ChunkKeyPrefix(row.name);
      std::string end = prefix;
      end.back() = static_cast<char>(end.back() + 1);  // '/' + 1: beyond every key of the prefix
      out->push_back({JournalChange::Kind::kEraseRange, prefix, end});
      return;
    }
    case RowRef::Kind::kEraseQuarantine:
      out->push_back({JournalChange::Kind::kErase, absl::StrCat(kQuarantinePrefix, row.name), ""});
      return;
    case RowRef::Kind::kMeta:
      return Put(std::string(kMetaKey), EncodeMeta(state.incarnation), out);
    case RowRef::Kind::kJob:
      return Put(absl::StrCat(kJobPrefix, row.name), EncodeJob(state.jobs.at(row.name)), out);
    case RowRef::Kind::kJobState:
      return Put(absl::StrCat(kJobStatePrefix, row.name), EncodeJobState(state.jobs.at(row.name)),
                 out);
    case RowRef::Kind::kChunk:
      return Put(ChunkKey(row.name, row.chunk),
                 EncodeChunk(state.jobs.at(row.name).chunks.at(row.chunk)), out);
    case RowRef::Kind::kRun:
      return Put(absl::StrCat(kRunPrefix, row.name), EncodeRun(state.runs.at(row.name)), out);
    case RowRef::Kind::kQuarantine:
      return Put(absl::StrCat(kQuarantinePrefix, row.name),
                 EncodeQuarantine(state.workers.at(row.name)), out);
  }
}

absl::Status DecodeChunkRow(absl::string_view rest, absl::string_view body, State* state) {
  if (rest.size() < 6) return absl::DataLossError("the key is too short");
  const std::string job_name(rest.substr(0, rest.size() - 5));
  uint32_t chunk = 0;
  for (const char c : rest.substr(rest.size() - 4)) chunk = chunk << 8 | static_cast<uint8_t>(c);
  auto job = state->jobs.find(job_name);
  if (job == state->jobs.end() || chunk >= job->second.chunks.size()) {
    return absl::DataLossError(absl::StrCat("there is no ", DescribeChunk(job_name, chunk)));
  }
  return DecodeChunk(body, chunk, &job->second.chunks);
}

absl::Status DecodeBody(absl::string_view key, absl::string_view body, State* state) {
  absl::string_view rest = key;
  if (key == kMetaKey) return DecodeMeta(body, &state->incarnation);
  if (absl::ConsumePrefix(&rest, kJobPrefix)) {
    Job job;
    SH_RETURN_IF_ERROR(DecodeJob(body, &job));
    if (job.name != rest) return absl::DataLossError("key and value name different jobs");
    state->jobs[job.name] = std::move(job);
    return absl::OkStatus();
  }
  if (absl::ConsumePrefix(&rest, kJobStatePrefix)) {
    auto job = state->jobs.find(std::string(rest));
    if (job == state->jobs.end()) return absl::DataLossError("there is no such job");
    return DecodeJobState(body, &job->second);
  }
  if (absl::ConsumePrefix(&rest, kChunkPrefix)) return DecodeChunkRow(rest, body, state);
  if (absl::ConsumePrefix(&rest, kRunPrefix)) {
    Run run;
    SH_RETURN_IF_ERROR(DecodeRun(body, &run));
    if (run.setup.name != rest) return absl::DataLossError("key and value name different runs");
    state->runs[run.setup.name] = std::move(run);
    return absl::OkStatus();
  }
  if (absl::ConsumePrefix(&rest, kQuarantinePrefix)) {
    Worker worker;
    SH_RETURN_IF_ERROR(DecodeQuarantine(body, &worker));
    worker.life = WorkerLife::kLost;
    state->workers[worker.ref.name] = std::move(worker);
    return absl::OkStatus();
  }
  return absl::DataLossError("a row of no known kind");
}

}  // namespace

std::vector<JournalChange> EncodeRows(const State& state, const std::set<RowRef>& rows) {
  std::vector<JournalChange> changes;
  for (const RowRef& row : rows) EncodeRow(state, row, &changes);
  return changes;
}

absl::Status DecodeRow(absl::string_view key, absl::string_view value, State* state) {
  const std::string what = absl::StrCat("journal row ", key);
  SH_ASSIGN_OR_RETURN_AT(const absl::string_view body, Unwrap(key, value), what);
  SH_RETURN_IF_ERROR_AT(DecodeBody(key, body, state), what);
  return absl::OkStatus();
}

absl::Status CheckRestored(const State& state) {
  for (const auto& [name, run] : state.runs) {
    if (state.jobs.count(run.job) == 0) {
      return absl::DataLossError(
          absl::StrCat("journal: ", name, " is of ", run.job, ", which is not there"));
    }
  }
  for (const auto& [name, job] : state.jobs) {
    for (const std::string& run : job.runs) {
      if (state.runs.count(run) == 0) {
        return absl::DataLossError(absl::StrCat("journal: ", name, " lacks its ", run));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace stillhouse

// Submission and cancellation of jobs.
#include <algorithm>
#include <limits>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status.h"
#include "coordinator/state.h"

namespace stillhouse {
namespace {

absl::Status CheckName(absl::string_view what, absl::string_view name) {
  if (name.empty() || name.size() > kNameBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": a name has 1 to ", kNameBytesMax, " bytes, not ", name.size()));
  }
  for (const char c : name) {
    if (!absl::ascii_isprint(c)) {
      return absl::InvalidArgumentError(absl::StrCat(what, ": a name is printable ASCII"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckSubmission(const State& state, const SubmitEvent& event) {
  SH_RETURN_IF_ERROR(CheckName("job", event.name));
  if (absl::StrContains(event.name, '/')) {
    return absl::InvalidArgumentError(absl::StrCat("job: the name ", event.name, " holds a '/'"));
  }
  if (event.key.empty() || event.key.size() > kNameBytesMax) {
    return absl::InvalidArgumentError("a submission carries an idempotency key of 1 to 256 bytes");
  }
  if (event.chunks.empty() || event.chunks.size() > kChunksMax) {
    return absl::InvalidArgumentError(absl::StrCat("job/", event.name, ": a plan has 1 to ",
                                                   kChunksMax, " chunks, not ",
                                                   event.chunks.size()));
  }
  if (event.runs.size() > kRunsMax) {
    return absl::InvalidArgumentError(absl::StrCat("job/", event.name, ": ", event.runs.size(),
                                                   " runs; at most ", kRunsMax, " are taken"));
  }
  if (event.recipe_text.size() > kRecipeBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "job/", event.name, ": the recipe is larger than ", kRecipeBytesMax, " bytes"));
  }
  for (const ChunkSpec& chunk : event.chunks) {
    if ((chunk.bytes_max > 0) == (event.retention.bytes_max > 0)) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "job/", event.name, ": in a bounded cache, and only there, every chunk has a size"));
  }
  std::set<std::string> names;
  for (const RunSetup& run : event.runs) {
    SH_RETURN_IF_ERROR(CheckName("run", run.name));
    if (!names.insert(run.name).second) {
      return absl::InvalidArgumentError(absl::StrCat(run.name, " stands twice in one submission"));
    }
    auto known = state.runs.find(run.name);
    if (known != state.runs.end() && known->second.job != absl::StrCat("job/", event.name)) {
      return absl::AlreadyExistsError(
          absl::StrCat(run.name, " is a run of ", known->second.job, " already"));
    }
  }
  return absl::OkStatus();
}

bool IsLive(const State& state, const Job& job) {
  if (job.phase == JobPhase::kCapturing) return true;
  return job.phase != JobPhase::kCancelled && !RunsAreOver(state, job);
}

// A bounded cache is counted as one job's: two would take each other's room.
absl::Status CheckAlone(const State& state, const SubmitEvent& event) {
  for (const auto& [name, job] : state.jobs) {
    if (name == absl::StrCat("job/", event.name) || !IsLive(state, job)) continue;
    if (event.retention.bytes_max == 0 && job.retention.bytes_max == 0) continue;
    return absl::FailedPreconditionError(
        absl::StrCat(event.retention.bytes_max > 0 ? event.name : name,
                     " has cache.retention: until_read and needs the cache for itself, but ", name,
                     " is at work: wait for its end, or coordinatorctl cancel ", name));
  }
  return absl::OkStatus();
}

void EraseChunks(State& state, Job& job, Effects& effects) {
  for (uint32_t i = 0; i < job.chunks.size(); ++i) {
    RemoveLeases(state, std::vector<uint64_t>(job.chunks.at(i).grants));
  }
  // A late report of a chunk of the old plan says nothing about the new one's.
  for (auto& [name, worker] : state.workers) {
    std::erase_if(worker.held, [&](const HeldGrant& held) { return held.grant.job == job.name; });
  }
  job.durations.clear();
  job.durable_at.clear();
  effects.rows.insert({RowRef::Kind::kEraseChunks, job.name});
}

// For people: what is no longer as it was when the job was submitted last.
std::string WhatChanged(const Job& job, const SubmitEvent& event) {
  const bool recipe = job.recipe_text != event.recipe_text;
  std::vector<std::string> what;
  if (job.capture.teacher != event.capture.teacher) what.emplace_back("teacher");
  if (!recipe && job.capture.plan != event.capture.plan) what.emplace_back("texts");
  if (recipe) what.emplace_back("recipe");
  return absl::StrJoin(what, " and ");
}

// Of every run that is another one than that of its name before: REQUIRES: not taken over yet.
std::vector<std::string> NotesOfNewRuns(const State& state, const SubmitEvent& event,
                                        const std::string& changes) {
  std::vector<std::string> notes;
  for (const RunSetup& setup : event.runs) {
    const auto known = state.runs.find(setup.name);
    if (known == state.runs.end() || known->second.setup.hash == setup.hash) continue;
    notes.push_back(absl::StrCat(
        setup.name, ": ",
        changes.empty() ? "named otherwise by an earlier version"
                        : absl::StrCat("its ", changes, " changed since it was last submitted"),
        "; this is a new run in ", setup.folder, ", and what the former one left stays"));
  }
  return notes;
}

// Takes over the runs of a submission; returns whether all of them were known as they are.
bool TakeRuns(State& state, Job& job, const SubmitEvent& event, bool capture_changed,
              Effects& effects) {
  bool all_known = true;
  std::string newcomer;
  std::vector<std::string> names;
  for (const RunSetup& setup : event.runs) {
    names.push_back(setup.name);
    auto [it, added] = state.runs.try_emplace(setup.name);
    Run& run = it->second;
    const bool known = !added && run.setup.hash == setup.hash;
    if (!known && newcomer.empty()) newcomer = setup.name;
    all_known &= known;
    run.job = job.name;
    if (added) run.setup = setup;
    ResubmitRun(run, setup);
    effects.rows.insert({RowRef::Kind::kRun, setup.name});
  }
  for (const std::string& name : job.runs) {  // those that the recipe no longer has
    if (std::count(names.begin(), names.end(), name) > 0) continue;
    if (CancelRun(state.runs[name])) effects.rows.insert({RowRef::Kind::kRun, name});
  }
  job.runs = names;
  const bool payer_left = std::count(names.begin(), names.end(), job.payer) == 0;
  if (payer_left) job.payer = names.empty() ? "" : names.front();
  if (capture_changed && !newcomer.empty()) job.payer = newcomer;
  return all_known;
}

}  // namespace

absl::StatusOr<SubmitAnswer> OnSubmit(State& state, const SubmitEvent& event, absl::Duration now,
                                      Effects& effects) {
  SH_RETURN_IF_ERROR(CheckSubmission(state, event));
  SH_RETURN_IF_ERROR(CheckAlone(state, event));
  const std::string name = absl::StrCat("job/", event.name);
  auto [it, added] = state.jobs.try_emplace(name);
  Job& job = it->second;
  if (!added && job.submit_key == event.key) return SubmitAnswer{name, job.submit_resumed, {}};

  const std::string changes = added ? "" : WhatChanged(job, event);
  const bool capture_changed =
      added || job.capture != event.capture || job.chunks.specs() != event.chunks;
  if (capture_changed) {
    EraseChunks(state, job, effects);
    job.chunks = ChunkTable(event.chunks);
    job.capture = event.capture;
    job.baseline = false;
  } else {
    for (const uint32_t index : job.chunks.ForgivePoisoned()) {
      effects.rows.insert({RowRef::Kind::kChunk, name, index});
    }
  }
  job.name = name;
  job.recipe_path = event.recipe_path;
  job.recipe_text = event.recipe_text;
  job.retention = event.retention;
  job.room = Room{};
  SubmitAnswer answer{name, false, NotesOfNewRuns(state, event, changes)};
  const bool runs_known = TakeRuns(state, job, event, capture_changed, effects);
  job.phase = JobPhase::kCapturing;
  job.problem.clear();
  job.submit_key = event.key;
  job.submit_resumed = !capture_changed && runs_known;
  job.teacher_seen_at = now;
  job.capture_started.reset();
  job.capture_seconds_before = job.capture_seconds;
  uint64_t least =
      std::numeric_limits<uint64_t>::max();  // a newcomer does not get all the past back
  for (const auto& [other_name, other] : state.jobs) {
    if (other_name != name && other.phase == JobPhase::kCapturing) {
      least = std::min(least, other.rows_granted);
    }
  }
  if (least != std::numeric_limits<uint64_t>::max()) {
    job.rows_granted = std::max(job.rows_granted, least);
  }

  ++job.generation;
  job.reconciled = false;
  InventoryAsk ask{name, job.generation, {}, /*reconcile=*/true};
  for (uint32_t i = 0; i < job.chunks.size(); ++i) ask.chunks.push_back(i);
  effects.asks.push_back(std::move(ask));
  effects.rows.insert({RowRef::Kind::kJob, name});
  effects.rows.insert({RowRef::Kind::kJobState, name});
  answer.resumed = job.submit_resumed;
  return answer;
}

absl::Status OnCancel(State& state, const std::string& name, Effects& effects) {
  auto run = state.runs.find(name);
  if (run != state.runs.end()) {
    if (CancelRun(run->second)) effects.rows.insert({RowRef::Kind::kRun, name});
    Job& job = state.jobs.at(run->second.job);
    if (job.retention.bytes_max > 0) SettleJob(state, job, effects);
    return absl::OkStatus();
  }
  Job* job = FindJob(state, name);
  if (job == nullptr) {
    return absl::NotFoundError(
        absl::StrCat("there is no job or run named ", name, " (coordinatorctl get lists them)"));
  }
  for (const std::string& run_name : job->runs) {
    if (CancelRun(state.runs[run_name])) effects.rows.insert({RowRef::Kind::kRun, run_name});
  }
  if (job->phase != JobPhase::kCapturing) return absl::OkStatus();
  job->phase = JobPhase::kCancelled;
  for (uint32_t i = 0; i < job->chunks.size(); ++i) {
    for (const uint64_t epoch : std::vector<uint64_t>(job->chunks.at(i).grants)) {
      job->chunks.EndGrant(i, epoch);
      RemoveLeases(state, {epoch});
    }
  }
  effects.rows.insert({RowRef::Kind::kJobState, job->name});
  return absl::OkStatus();
}

}  // namespace stillhouse

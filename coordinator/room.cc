#include "coordinator/room.h"

#include <algorithm>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "coordinator/limits.h"
#include "coordinator/state.h"

namespace stillhouse {
namespace {

bool HasEnded(const Run& run) {
  return run.phase == RunPhase::kFinished || run.phase == RunPhase::kFailed ||
         run.phase == RunPhase::kCancelled;
}

// A run that says nothing any more holds no chunk in its place.
bool IsAtWork(const State& state, const std::string& name, absl::Duration now) {
  const auto run = state.runs.find(name);
  return run != state.runs.end() && run->second.phase == RunPhase::kActive &&
         run->second.last_heard.has_value() && now - *run->second.last_heard <= kRunSilenceMax;
}

bool IsInFlight(const Job& job, uint32_t chunk) {
  const ChunkState state = job.chunks.at(chunk).state;
  return state == ChunkState::kLeased ||
         (state == ChunkState::kConfirming && !job.room.releasing.contains(chunk));
}

size_t PlaceOf(const Job& job, const std::string& run) {
  return std::find(job.runs.begin(), job.runs.end(), run) - job.runs.begin();
}

// Where a chunk stands in what a run will read: the run's place in the recipe, then its order.
// Runs that share a small cache go on one after another rather than not at all.
using Turn = std::pair<size_t, size_t>;

// The first turn of each chunk that a run at work wants.
std::map<uint32_t, Turn> TurnsOf(const State& state, const Job& job, absl::Duration now) {
  std::map<uint32_t, Turn> turns;
  for (const auto& [run, chunks] : job.room.upcoming) {
    if (!IsAtWork(state, run, now)) continue;
    for (size_t i = 0; i < chunks.size(); ++i) {
      const Turn turn(PlaceOf(job, run), i);
      const auto [known, added] = turns.try_emplace(chunks[i], turn);
      if (!added) known->second = std::min(known->second, turn);
    }
  }
  return turns;
}

// Why a chunk may go; the lowest goes first.
enum class Cause : uint8_t {
  kReadByAll,  // nobody will read it, unless in a later epoch
  kUnwanted,   // a run has not read it, but none at work asks for it: it is captured again then
  kLater,      // somebody waits for the candidate, and will read this one later
};

struct Victim {
  Cause cause;
  Turn turn;  // kLater: the last goes first
  uint32_t chunk;
};

bool ReadByAll(const State& state, const Job& job, uint32_t chunk) {
  const auto read = job.room.read.find(chunk);
  return std::all_of(job.runs.begin(), job.runs.end(), [&](const std::string& run) {
    return HasEnded(state.runs.at(run)) ||
           (read != job.room.read.end() && read->second.contains(run));
  });
}

std::vector<uint32_t> ChooseVictims(const State& state, const Job& job, uint32_t candidate,
                                    bool urgent, absl::Duration now, size_t count, size_t ahead) {
  const std::map<uint32_t, Turn> turns = TurnsOf(state, job, now);
  const auto mine = turns.find(candidate);
  std::vector<Victim> victims;
  // The first chunk stays: it is captured alone, before all others.
  for (uint32_t i = 1; i < job.chunks.size(); ++i) {
    const Chunk& chunk = job.chunks.at(i);
    if (chunk.state != ChunkState::kDurable || chunk.spec.held_out || job.room.kept.contains(i)) {
      continue;
    }
    const auto turn = turns.find(i);
    if (turn == turns.end()) {
      const bool read = ReadByAll(state, job, i);
      if (read || mine != turns.end()) {
        victims.push_back({read ? Cause::kReadByAll : Cause::kUnwanted, {}, i});
      }
    } else if (urgent && mine != turns.end() && turn->second > mine->second) {
      victims.push_back({Cause::kLater, turn->second, i});
    }
  }
  const size_t most = std::min(count + ahead, victims.size());
  std::partial_sort(victims.begin(), victims.begin() + static_cast<ptrdiff_t>(most), victims.end(),
                    [](const Victim& a, const Victim& b) {
                      return std::tie(a.cause, b.turn, a.chunk) <
                             std::tie(b.cause, a.turn, b.chunk);
                    });
  std::vector<uint32_t> chosen;
  for (size_t i = 0; i < most; ++i) {
    if (i >= count && victims[i].cause == Cause::kLater) break;
    chosen.push_back(victims[i].chunk);
  }
  return chosen;
}

// What may be taken: rewriting segments needs some room of its own.
uint64_t UsableBytes(const Job& job) {
  return job.retention.bytes_max - job.retention.bytes_max / kRewriteRoomShare;
}

uint64_t ReservedBytes(const Job& job) {
  uint64_t bytes = 0;
  for (const auto& [chunk, worst] : job.room.reserved) bytes += worst;
  return bytes;
}

void AskCache(Job& job, std::vector<uint32_t> release, Effects& effects) {
  Room& room = job.room;
  room.asking = true;
  room.covered.clear();
  for (const auto& [chunk, worst] : room.reserved) {
    if (!IsInFlight(job, chunk)) room.covered.insert(chunk);
  }
  effects.rooms.push_back({job.name, job.generation, std::move(release)});
}

}  // namespace

void NoteGranted(Job& job, uint32_t chunk) {
  if (job.retention.bytes_max == 0) return;
  job.room.reserved[chunk] = job.chunks.at(chunk).spec.bytes_max;
  job.room.covered.erase(chunk);
}

void NoteUpcoming(Job& job, const std::string& run, const std::vector<uint32_t>& chunks) {
  if (job.retention.bytes_max == 0) return;
  std::vector<uint32_t> training;
  for (const uint32_t chunk : chunks) {
    if (!job.chunks.at(chunk).spec.held_out) training.push_back(chunk);
  }
  if (training.empty()) return;
  std::vector<uint32_t>& upcoming = job.room.upcoming[run];
  for (const uint32_t chunk : upcoming) job.room.read[chunk].insert(run);
  for (const uint32_t chunk : training) {
    const auto read = job.room.read.find(chunk);
    if (read != job.room.read.end()) read->second.erase(run);
  }
  upcoming = std::move(training);
}

void ForgetUpcoming(Job& job, const std::string& run) { job.room.upcoming.erase(run); }

bool IsWanted(const State& state, const Job& job, uint32_t chunk, absl::Duration now) {
  return std::any_of(job.room.upcoming.begin(), job.room.upcoming.end(), [&](const auto& entry) {
    return std::count(entry.second.begin(), entry.second.end(), chunk) > 0 &&
           IsAtWork(state, entry.first, now);
  });
}

bool RunsAreOver(const State& state, const Job& job) {
  return std::all_of(job.runs.begin(), job.runs.end(),
                     [&](const std::string& run) { return HasEnded(state.runs.at(run)); });
}

bool HasRoom(State& state, Job& job, uint32_t chunk, absl::Duration deadline, absl::Duration now,
             Effects& effects) {
  if (job.retention.bytes_max == 0) return true;
  Room& room = job.room;
  const uint64_t worst = job.chunks.at(chunk).spec.bytes_max;
  const uint64_t needed = room.used.value_or(0) + ReservedBytes(job) + worst;
  if (room.used.has_value() && needed <= UsableBytes(job)) {
    room.full.clear();
    return true;
  }
  if (room.asking) return false;
  const bool stale = std::any_of(room.reserved.begin(), room.reserved.end(),
                                 [&](const auto& entry) { return !IsInFlight(job, entry.first); });
  if (!room.used.has_value() || stale) {
    AskCache(job, {}, effects);
    return false;
  }
  const size_t durable = job.chunks.CountIn(ChunkState::kDurable);
  const uint64_t usual = std::max<uint64_t>(1, *room.used / std::max<size_t>(durable, 1));
  const size_t count =
      std::min<uint64_t>(kReleaseChunksMax, 1 + (needed - UsableBytes(job)) / usual);
  // Some more where it costs no run anything soon, so that not every lease waits for the cache.
  const size_t ahead = std::min<uint64_t>(kReleaseChunksMax, kRoomAheadChunks * worst / usual);
  const bool urgent = deadline <= now + kUrgent;
  std::vector<uint32_t> victims = ChooseVictims(state, job, chunk, urgent, now, count, ahead);
  if (victims.empty()) {
    // Who wanted them may have gone meanwhile.
    if (!room.kept.empty() && now - room.kept_at >= kKeptRetry) room.kept.clear();
    if (room.full.empty() && room.reserved.empty()) {
      room.full = absl::StrCat(
          DescribeChunk(job.name, chunk), " does not fit: ", *room.used, " of ",
          job.retention.bytes_max,
          " bytes of the cache are in use by what may not be freed; raise cache.bytes_max, or "
          "remove what else is there with coordinatorctl cache rm");
      effects.warnings.push_back(room.full);
    }
    return false;
  }
  room.full.clear();
  for (const uint32_t victim : victims) {
    job.chunks.StartRelease(victim);
    room.releasing.insert(victim);
    effects.rows.insert({RowRef::Kind::kChunk, job.name, victim});
  }
  AskCache(job, std::move(victims), effects);
  return false;
}

void OnRoom(State& state, const RoomAsk& asked, uint64_t bytes_used, Effects& effects) {
  Job* job = FindJob(state, asked.job);
  if (job == nullptr || job->generation != asked.generation) return;
  Room& room = job->room;
  room.asking = false;
  room.used = bytes_used;
  for (const uint32_t chunk : room.covered) room.reserved.erase(chunk);
  room.covered.clear();
  // Whether they are gone is for the cache's inventory to say: others may want the same sections.
  if (!asked.release.empty()) effects.asks.push_back({asked.job, asked.generation, asked.release});
}

}  // namespace stillhouse

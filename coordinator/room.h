// Room: the part of a job's state that keeps a bounded cache below its limit.
//
// With `retention: until_read` chunks that the runs have read are taken out of the cache when
// others need their place, and captured again when somebody asks for them later. No lease is given
// unless what the cache holds, what leases under way may still write and the chunk itself, each at
// its worst, fit together.
//
// Owner: the coordinator's State. Pure and volatile: the limit is journaled with the job, all else
// is found again by asking the cache, and by what runs say they want. Ordering: one question to the
// cache at a time; what was granted meanwhile stays reserved until a later answer covers it.
//
//   [durable] ─13 chosen, its place is needed─► [confirming, releasing] ─5 it has it not─► [pending]
//                                                        └─4 somebody else wants it─► [durable], kept
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace stillhouse {

struct Effects;
struct Job;
struct State;

struct RetentionSetup {
  uint64_t bytes_max = 0;  // of the whole cache; 0: chunks are kept, and nothing is counted
  friend bool operator==(const RetentionSetup&, const RetentionSetup&) = default;
};

struct Room {
  std::optional<uint64_t> used;           // as the cache said last
  std::map<uint32_t, uint64_t> reserved;  // bytes of chunks granted and not yet in `used`
  bool asking = false;                    // a question is out
  std::set<uint32_t> covered;             // reservations that its answer makes needless
  std::set<uint32_t> releasing;           // taken out, not yet confirmed to be gone
  std::set<uint32_t> kept;                // somebody else wants them, or wanted them
  absl::Duration kept_at;                 // when the last of them turned out to be kept
  // Run → the training chunks it will read next, in that order, as it said last.
  std::map<std::string, std::vector<uint32_t>> upcoming;
  std::map<uint32_t, std::set<std::string>> read;  // chunk → runs that wanted it and went past it
  std::string full;  // why nothing more is captured for now; for people
};

// Reserves what the chunk may take.
void NoteGranted(Job& job, uint32_t chunk);
// What the run will read next, in that order; what it no longer lists it has read. Lists of
// held-out chunks alone, as evaluations send them, say nothing.
void NoteUpcoming(Job& job, const std::string& run, const std::vector<uint32_t>& chunks);
// A new process of the run: it will say again what it wants, and may have to read again.
void ForgetUpcoming(Job& job, const std::string& run);
// Does a run that is at work want it?
bool IsWanted(const State& state, const Job& job, uint32_t chunk, absl::Duration now);
// May a lease of this chunk be given? If not, asks the cache how much it holds, or to release
// chunks whose place is needed, unless it is being asked.
bool HasRoom(State& state, Job& job, uint32_t chunk, absl::Duration deadline, absl::Duration now,
             Effects& effects);
// Every run has ended: nothing of the job will be read any more.
bool RunsAreOver(const State& state, const Job& job);

}  // namespace stillhouse

// The coordinator's limits and periods, each with its reason.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/time/time.h"

namespace stillhouse {

// Three heartbeats may be lost before a lease is.
inline constexpr absl::Duration kLeaseLength = absl::Seconds(15);
inline constexpr absl::Duration kHeartbeatPeriod = absl::Seconds(5);
// Work that hangs must not hold a chunk for ever, but slow work is not hanging.
inline constexpr absl::Duration kStallMin = absl::Seconds(60);
inline constexpr int kStallMedians = 4;
// A chunk that takes this many times the median, when nothing else is left, is given to a second
// worker.
inline constexpr int kSlowMedians = 2;
inline constexpr size_t kGrantsPerChunkMax = 2;
// Failures attributed to a chunk, in as many worker incarnations, that poison it.
inline constexpr size_t kChunkFailuresMax = 3;
// Lost workers blame a chunk only where chance does not explain it: a worker is killed by people,
// preemption and failing nodes, too. Until a job knows better, one loss in so many leases is taken
// for usual; as long as all is quiet three losses alone with a chunk are then beyond chance.
inline constexpr double kQuietLeases = 50;
inline constexpr double kLossChanceMin = 1e-5;
// Whatever the chance: a chunk takes no more workers with it than this.
inline constexpr size_t kSoloLossesMax = 30;
// Chunks that fail one after another in one process before it is asked to leave.
inline constexpr int kWorkerFailuresMax = 3;
// The loop's own period; a gap well beyond it is the coordinator's fault and is given back to
// everyone.
inline constexpr absl::Duration kTickPeriod = absl::Milliseconds(500);
inline constexpr absl::Duration kTickGapMin = absl::Seconds(2);

inline constexpr absl::Duration kLeaseRetry = absl::Milliseconds(500);  // nothing to lease just now
inline constexpr absl::Duration kWantRetry = absl::Milliseconds(500);   // a chunk is pending
// A teacher that restarts is back before this; then students are told that none is there.
inline constexpr absl::Duration kNeedsTeacherAfter = absl::Seconds(60);
// A process that ended is shown to people for this long.
inline constexpr absl::Duration kForgetWorkerAfter = absl::Hours(1);
// Progress of a run is journaled this often; phases, evaluations and checkpoints at once.
inline constexpr absl::Duration kProgressJournalPeriod = absl::Seconds(10);

// A run that was not heard of for so long loses its claim on chunks in a bounded cache.
inline constexpr absl::Duration kRunSilenceMax = absl::Seconds(60);
// Chunks that somebody else wanted when they were to be released are tried again after this.
inline constexpr absl::Duration kKeptRetry = absl::Seconds(30);
// A chunk that is read so soon may take the place of what is read later.
inline constexpr absl::Duration kUrgent = absl::Seconds(5);
// One part in so many of a bounded cache is left for segments that are being rewritten.
inline constexpr uint64_t kRewriteRoomShare = 8;
// Room is made for so many chunks beside the one that lacks it.
inline constexpr uint64_t kRoomAheadChunks = 4;
inline constexpr size_t kReleaseChunksMax = 64;  // at once: the cache marks and compacts for them

inline constexpr size_t kChunksMax = 1'000'000;  // of a job: 16 billion tokens
inline constexpr size_t kRunsMax = 1000;         // of a job
inline constexpr size_t kWorkersMax = 20'000;    // twice what is promised
inline constexpr size_t kHeldMax = 16;           // grants presented by one worker
inline constexpr size_t kHeldGrantsKept = 32;    // of one worker, to know its late reports
inline constexpr size_t kNameBytesMax = 256;
inline constexpr size_t kRecipeBytesMax = 4 << 20;
inline constexpr size_t kReasonBytesMax = 2000;  // of a failure, kept for people
inline constexpr size_t kPastIncarnationsMax =
    16;                                         // remembered, to refuse delayed messages of theirs
inline constexpr size_t kScanPendingMax = 256;  // chunks looked at to find one this worker may have
inline constexpr size_t kAskChunksMax = 4096;   // of one inventory question
inline constexpr size_t kDurationsKept = 64;    // of finished chunks, for median and rate

}  // namespace stillhouse

// ChunkWatch: what the coordinator's answers about one chunk mean for a run that needs it.
#pragma once

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "worker/run_client.h"

namespace stillhouse {

// How long "no teacher is alive" must hold before it is believed: teachers start, too.
inline constexpr absl::Duration kNeedsTeacherGrace = absl::Minutes(2);

// Plain state; not thread-safe.
class ChunkWatch {
 public:
  ChunkWatch(uint32_t chunk, absl::Duration needs_teacher_grace)
      : chunk_(chunk), grace_(needs_teacher_grace) {}

  void Note(ChunkAvailability state, absl::Duration now);
  bool durable() const { return durable_; }
  bool pending() const { return noted_ && !durable_; }  // by the last answer
  // A RunStop status (run_stop.h) once the chunk is known not to come; else OK.
  const absl::Status& problem() const { return problem_; }

 private:
  uint32_t chunk_;
  absl::Duration grace_;
  bool noted_ = false, durable_ = false;
  absl::Status problem_;
  std::optional<absl::Duration> no_teacher_since_;
};

}  // namespace stillhouse

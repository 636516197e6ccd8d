#include "student/chunk_watch.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "student/run_stop.h"

namespace stillhouse {

void ChunkWatch::Note(ChunkAvailability state, absl::Duration now) {
  const std::string name = absl::StrCat("chunk ", chunk_);
  noted_ = true;
  durable_ = state == ChunkAvailability::kDurable;
  problem_ = absl::OkStatus();
  if (state != ChunkAvailability::kNeedsTeacher) no_teacher_since_.reset();
  switch (state) {
    case ChunkAvailability::kPending:
    case ChunkAvailability::kDurable:
      return;
    case ChunkAvailability::kNeedsTeacher:
      if (!no_teacher_since_.has_value()) no_teacher_since_ = now;
      if (now - *no_teacher_since_ < grace_) return;
      problem_ = StopStatus(RunStop::kNeedsTeacher,
                            absl::StrCat(name,
                                         " is not captured and no teacher is alive: start a "
                                         "teacher worker, then the run again"));
      return;
    case ChunkAvailability::kPoisoned:
      problem_ = StopStatus(RunStop::kPoisoned,
                            absl::StrCat(name,
                                         " failed at every teacher that tried it: see "
                                         "`coordinatorctl describe`, mend or remove its "
                                         "documents, submit again"));
      return;
    case ChunkAvailability::kExcluded:
      problem_ = StopStatus(RunStop::kExcluded, absl::StrCat(name, " was excluded from the job"));
      return;
    case ChunkAvailability::kLost:
      problem_ = StopStatus(RunStop::kLost, absl::StrCat(name,
                                                         " was stored and is gone: run "
                                                         "`coordinatorctl cache verify`, then "
                                                         "submit again"));
      return;
  }
  problem_ = absl::InternalError("a chunk state that this program does not know");
}

}  // namespace stillhouse

// One machine's worth of a run for tests of whole trainings: folders, a cache and a coordinator in
// memory, and the thread that they run on.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/event_loop.h"
#include "common/file.h"
#include "formats/json.h"
#include "student/trainer.h"
#include "tests/student/fakes.h"

namespace stillhouse {

// Seven steps of the first and last layer of a tiny teacher.
extern const char kTrainerRecipe[];
inline constexpr uint64_t kTrainerSeed = 7;  // of it

class TrainerBench {
 public:
  explicit TrainerBench(const std::string& recipe_text);
  ~TrainerBench();

  // On as many ranks as the recipe says: threads, each with a stop flag of its own. The first
  // rank's end; all ends are in `ends`.
  absl::Status Train();
  // As a restart by the coordinator would: another epoch, from the last committed checkpoint.
  absl::Status TrainAgain() {
    OnLoop([&] { spec.checkpoint = run.committed; });
    ++spec.run_epoch;
    for (std::atomic<bool>& stop : stops) stop = false;
    return Train();
  }
  void OnLoop(absl::AnyInvocable<void()> call) { RunOnExecutor(loop_, std::move(call)); }
  std::string Exported() {
    auto bytes = ReadFile(JoinPath(output, "small/model.safetensors"));
    return bytes.ok() ? *bytes : std::string(bytes.status().message());
  }
  std::string ExitKind() {
    auto json = ReadJsonFile(JoinPath(spec.run_folder, "exit.json"), 1 << 16);
    return json.ok() ? (*json)["kind"].get<std::string>() : std::string(json.status().message());
  }

 private:
  void AddObjects();
  TempFolder folder_;
  EventLoop loop_;

 public:
  FakeCache cache;
  FakeRun run;
  std::shared_ptr<const Plan> plan;
  TestTeacher teacher;
  RunSpec spec;
  std::string output;
  int ranks = 1;
  std::array<std::atomic<bool>, 4> stops = {};  // of each rank
  std::vector<absl::Status> ends;

 private:
  std::thread thread_;
};

// The weights that an uninterrupted run of `recipe` exports.
std::string UninterruptedExport(const std::string& recipe);

}  // namespace stillhouse

#include "student/checkpoint.h"

#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <functional>

#include "common/file.h"
#include "common/random.h"
#include "formats/json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/common/small_disk.h"
#include "tests/student/small_student.h"

namespace stillhouse {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class CheckpointTest : public testing::Test {
 protected:
  CheckpointTest() : folder_(*TempFolder::Create()), state_(SmallConfig(true), DType::kBF16) {
    Fill(1);
  }

  void Fill(uint64_t seed) {
    RandomStream random(seed);
    for (FlatBuffer<float>* buffer : {&state_.masters, &state_.first, &state_.second}) {
      for (float& value : buffer->span()) value = static_cast<float>(random.NextNormal());
    }
    state_.RoundWeights();
  }

  RunProgress Progress(uint64_t step) {
    RunProgress progress;
    progress.step = step;
    progress.data = {1, 14};
    progress.seed = 0xfedcba9876543210u;
    progress.run_hash = hash_;
    progress.teacher_layers = {0, 1, 24, 29};
    progress.seconds = 1.0 / 3;
    progress.waited_s = 0.1;
    progress.best = 1.39;
    progress.best_step = std::min<uint64_t>(step, 20);
    progress.evaluations = 2;
    return progress;
  }

  CheckpointRules Rules() {
    return {.run_hash = hash_,
            .seed = 0xfedcba9876543210u,
            .teacher_layers = {0, 1, 24, 29},
            .steps = 100,
            .step_rows = 60,
            .epoch_documents = 100,
            .epoch_rows = 300};
  }

  // Writes the checkpoint's manifest with a change and a digest that is right.
  void Forge(const std::string& name, const std::function<void(OrderedJson&)>& change) {
    const std::string path = Path(name, "MANIFEST.json");
    OrderedJson json = OrderedJson::parse(*ReadFile(path));
    change(json);
    json.erase("digest");
    json["digest"] = Sha256Of(json.dump()).Hex();
    ASSERT_TRUE(WriteFileAtomically(path, json.dump(1) + "\n").ok());
  }

  std::string Path(const std::string& name, const std::string& file) {
    return JoinPath(folder_.path(), "checkpoints/" + name + "/" + file);
  }

  TempFolder folder_;
  StudentState state_;
  RankGroup alone_{nullptr};
  const Digest hash_ = Sha256Of("run");
};

bool SameBits(const StudentState& a, const StudentState& b) {
  const size_t bytes = a.layout.size() * sizeof(float);
  return memcmp(a.masters.data(), b.masters.data(), bytes) == 0 &&
         memcmp(a.first.data(), b.first.data(), bytes) == 0 &&
         memcmp(a.second.data(), b.second.data(), bytes) == 0 &&
         memcmp(a.weights.data(), b.weights.data(), bytes / 2) == 0;
}

std::string LittleEndian(uint64_t value) {
  std::string bytes;
  for (int byte = 0; byte < 8; ++byte) bytes += static_cast<char>(value >> (8 * byte));
  return bytes;
}

TEST_F(CheckpointTest, ReadsBackBitForBit) {
  CheckpointStore store(folder_.path());
  const auto name = store.Write(Progress(20), state_, /*run_epoch=*/2, alone_);
  ASSERT_TRUE(name.ok()) << name.status();
  EXPECT_THAT(*name, testing::StartsWith("step-20.2."));
  StudentState other(SmallConfig(true), DType::kBF16);
  const auto progress = store.Read(*name, Rules(), &other);
  ASSERT_TRUE(progress.ok()) << progress.status();
  EXPECT_EQ(*progress, Progress(20));
  EXPECT_TRUE(SameBits(state_, other));
}

TEST_F(CheckpointTest, TheShardsBytesAreAsTheHeaderStates) {
  CheckpointStore store(folder_.path());
  const auto name = store.Write(Progress(20), state_, 1, alone_);
  ASSERT_TRUE(name.ok());
  const auto bytes = ReadFile(Path(*name, "rank-0-of-1.state"));
  ASSERT_TRUE(bytes.ok());
  const uint64_t n = state_.layout.size();
  std::string expected = "SHSTATE2";
  for (const uint64_t field : {n, uint64_t{1}, n}) expected += LittleEndian(field);
  expected.resize(64, '\0');
  for (const uint64_t field : {uint64_t{0}, n}) expected += LittleEndian(field);
  expected.resize(128, '\0');
  for (const FlatBuffer<float>* buffer : {&state_.masters, &state_.first, &state_.second}) {
    expected.append(reinterpret_cast<const char*>(buffer->data()), n * sizeof(float));
  }
  EXPECT_EQ(*bytes, expected);
}

TEST_F(CheckpointTest, VersionOneIsReadToo) {
  CheckpointStore store(folder_.path());
  RunProgress progress = Progress(20);
  const auto name = store.Write(progress, state_, 1, alone_);
  ASSERT_TRUE(name.ok());
  const uint64_t n = state_.layout.size();
  std::string shard = "SHSTATE1";
  for (const uint64_t field : {n, uint64_t{0}, n}) shard += LittleEndian(field);
  shard.resize(64, '\0');
  for (const FlatBuffer<float>* buffer : {&state_.masters, &state_.first, &state_.second}) {
    shard.append(reinterpret_cast<const char*>(buffer->data()), n * sizeof(float));
  }
  ASSERT_TRUE(WriteFileAtomically(Path(*name, "rank-0-of-1.state"), shard).ok());
  Forge(*name, [&](OrderedJson& json) {
    json["version"] = 1;
    json.erase("skipped");
    json["files"][0]["bytes"] = shard.size();
    json["files"][0]["sha256"] = Sha256Of(shard).Hex();
  });
  StudentState other(SmallConfig(true), DType::kBF16);
  const auto read = store.Read(*name, Rules(), &other);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(*read, progress);
  EXPECT_TRUE(SameBits(state_, other));
}

TEST_F(CheckpointTest, WhereverAWriteStopsTheOlderOneStands) {
  CheckpointStore good(folder_.path());
  const auto first = good.Write(Progress(10), state_, 1, alone_);
  ASSERT_TRUE(first.ok());
  for (const std::string point : {"folder", "shard", "manifest", "rename", "sync"}) {
    Fill(2);
    CheckpointStore store(folder_.path(), [&](absl::string_view step) {
      return step == point ? absl::AbortedError("killed") : absl::OkStatus();
    });
    EXPECT_EQ(store.Write(Progress(20), state_, 1, alone_).status().code(),
              absl::StatusCode::kAborted);
    // A new process looks at what is there.
    CheckpointStore fresh(folder_.path());
    Fill(1);
    StudentState other(SmallConfig(true), DType::kBF16);
    ASSERT_TRUE(fresh.Read(*first, Rules(), &other).ok()) << point;
    EXPECT_TRUE(SameBits(state_, other));
    ASSERT_TRUE(fresh.Prune(*first, 1).ok());
    const auto left = ListFolder(JoinPath(folder_.path(), "checkpoints"));
    ASSERT_TRUE(left.ok());
    EXPECT_THAT(*left, testing::Contains(*first));
    for (const std::string& name : *left) EXPECT_THAT(name, testing::Not(HasSubstr(".tmp")));
  }
}

TEST_F(CheckpointTest, AFullDiskLeavesTheOlderOneAndNothingHalfWritten) {
  SmallDisk disk(JoinPath(folder_.path(), "disk"), "size=1m,mode=700");
  if (!disk.mounted()) GTEST_SKIP() << "this process may not mount a tmpfs";
  CheckpointStore store(disk.path());
  const auto first = store.Write(Progress(10), state_, 1, alone_);
  ASSERT_TRUE(first.ok()) << first.status();
  int refused = 0;
  for (size_t room = 0; room < (1 << 20); room += 8 << 10) {
    disk.LeaveRoom(room);
    const auto second = store.Write(Progress(20), state_, 1, alone_);
    if (second.ok()) break;  // there was enough
    ++refused;
    EXPECT_EQ(second.status().code(), absl::StatusCode::kResourceExhausted) << second.status();
    const std::string message(second.status().message());
    EXPECT_THAT(message, HasSubstr("writing a checkpoint: "));
    EXPECT_THAT(message, HasSubstr("No space left on device"));
    EXPECT_THAT(message, testing::Not(HasSubstr("\n")));
    EXPECT_THAT(*store.List(), ElementsAre(*first));
    EXPECT_THAT(*ListFolder(JoinPath(disk.path(), "checkpoints")), ElementsAre(*first));
  }
  EXPECT_GE(refused, 3);
  EXPECT_EQ(store.List()->size(), 2u);
  StudentState other(SmallConfig(true), DType::kBF16);
  ASSERT_TRUE(store.Read(*first, Rules(), &other).ok());
  EXPECT_TRUE(SameBits(state_, other));
  ASSERT_TRUE(store.Read(store.List()->front(), Rules(), &other).ok());
}

TEST_F(CheckpointTest, RefusesWhatIsDamaged) {
  CheckpointStore store(folder_.path());
  const auto name = store.Write(Progress(20), state_, 1, alone_);
  ASSERT_TRUE(name.ok());
  StudentState other(SmallConfig(true), DType::kBF16);
  for (const std::string file : {"rank-0-of-1.state", "MANIFEST.json"}) {
    const auto bytes = ReadFile(Path(*name, file));
    ASSERT_TRUE(bytes.ok());
    std::string flipped = *bytes;
    flipped[flipped.size() / 2] ^= 1;
    std::string shorter = bytes->substr(0, bytes->size() - 3);
    for (const std::string& bad : {flipped, shorter, std::string()}) {
      ASSERT_TRUE(WriteFileAtomically(Path(*name, file), bad).ok());
      const absl::Status status = store.Read(*name, Rules(), &other).status();
      EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << file << ": " << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr(file));
    }
    ASSERT_TRUE(WriteFileAtomically(Path(*name, file), *bytes).ok());
  }
  EXPECT_TRUE(store.Read(*name, Rules(), &other).ok());
}

TEST_F(CheckpointTest, RefusesNumbersThatNoRunCouldHaveWritten) {
  CheckpointStore store(folder_.path());
  const auto name = store.Write(Progress(20), state_, 1, alone_);
  ASSERT_TRUE(name.ok());
  const std::string manifest = *ReadFile(Path(*name, "MANIFEST.json"));
  const std::pair<std::string, OrderedJson> changes[] = {
      {"/step", 1000},
      {"/step", 21},
      {"/step", -1},
      {"/step", 20.5},
      {"/data/epoch", 1ull << 63},
      {"/data/epoch", 5},  // 20 steps of 60 rows make 4 epochs of 300
      {"/data/epoch", -1},
      {"/data/index", 1000000000000000},
      {"/data/index", 100},
      {"/randomness/seed", 8},
      {"/teacher_layers", {0, 1}},
      {"/seconds", -1.0},
      {"/waited_s", "long"},
      {"/early_stop/best", nullptr},
      {"/early_stop/best_step", 21},
      {"/early_stop/evaluations", 22},
      {"/early_stop/without_gain", 3},
      {"/skipped/total", 21},
      {"/skipped/in_a_row", 1},
      {"/world_size", 2},
      {"/world_size", 0},
      {"/files/0/name", "../../x"},
  };
  StudentState other(SmallConfig(true), DType::kBF16);
  for (const auto& [pointer, value] : changes) {
    Forge(*name, [&pointer = pointer, &value = value](OrderedJson& json) {
      json[OrderedJson::json_pointer(pointer)] = value;
    });
    const absl::Status status = store.Read(*name, Rules(), &other).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << pointer << " " << value << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("MANIFEST.json: ")) << pointer;
    ASSERT_TRUE(WriteFileAtomically(Path(*name, "MANIFEST.json"), manifest).ok());
  }
  // Nor can so few documents fill so many steps.
  Forge(*name, [](OrderedJson& json) { json["data"] = {{"epoch", 0}, {"index", 19}}; });
  EXPECT_TRUE(absl::IsDataLoss(store.Read(*name, Rules(), &other).status()));
  ASSERT_TRUE(WriteFileAtomically(Path(*name, "MANIFEST.json"), manifest).ok());
  // The texts became fewer.
  CheckpointRules shrunk = Rules();
  shrunk.epoch_documents = 14;
  EXPECT_TRUE(absl::IsDataLoss(store.Read(*name, shrunk, &other).status()));
  // The folder of a later step.
  const std::string renamed = "step-40.1.00000000";
  ASSERT_EQ(rename(Path(*name, "").c_str(), Path(renamed, "").c_str()), 0);
  EXPECT_TRUE(absl::IsDataLoss(store.Read(renamed, Rules(), &other).status()));
  ASSERT_EQ(rename(Path(renamed, "").c_str(), Path(*name, "").c_str()), 0);
  EXPECT_TRUE(store.Read(*name, Rules(), &other).ok());
}

TEST_F(CheckpointTest, WhateverIsWrongWithTheNewestTheNextOlderOneIsRead) {
  const std::string checkpoints = JoinPath(folder_.path(), "checkpoints");
  const auto pipe = [](const std::string& folder, const char* file) {
    const std::string path = JoinPath(folder, file);
    ASSERT_EQ(unlink(path.c_str()), 0);
    ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  };
  const std::function<void(const std::string&)> harms[] = {
      [](const std::string& folder) { ASSERT_TRUE(RemoveTree(folder).ok()); },
      [](const std::string& folder) {
        ASSERT_TRUE(RemoveTree(folder).ok());
        ASSERT_EQ(symlink(BaseName(folder).c_str(), folder.c_str()), 0);
      },
      [](const std::string& folder) {
        ASSERT_TRUE(RemoveTree(folder).ok());
        ASSERT_TRUE(WriteFileAtomically(folder, "x").ok());
      },
      [&](const std::string& folder) { pipe(folder, "MANIFEST.json"); },
      [&](const std::string& folder) { pipe(folder, "rank-0-of-1.state"); },
      [&](const std::string& folder) {
        Forge(BaseName(folder), [](OrderedJson& json) { json["version"] = 9; });
      },
      [&](const std::string& folder) {
        Forge(BaseName(folder), [](OrderedJson& json) { json["run_hash"] = std::string(64, '0'); });
      },
  };
  for (const auto& harm : harms) {
    ASSERT_TRUE(RemoveTree(checkpoints).ok());
    CheckpointStore store(folder_.path());
    std::vector<std::string> names;
    for (const uint64_t step : {10, 20, 30, 40})
      names.push_back(*store.Write(Progress(step), state_, 1, alone_));
    // 40 was never committed.
    StudentState other(SmallConfig(true), DType::kBF16);
    EXPECT_EQ(store.ReadNewest(names[2], Rules(), &other, alone_)->name, names[2]);
    harm(JoinPath(checkpoints, names[2]));
    const auto found = store.ReadNewest(names[2], Rules(), &other, alone_);
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(found->name, names[1]);
    EXPECT_EQ(found->progress.step, 20u);
    EXPECT_TRUE(SameBits(state_, other));
    harm(JoinPath(checkpoints, names[1]));
    harm(JoinPath(checkpoints, names[0]));
    const absl::Status none = store.ReadNewest(names[2], Rules(), &other, alone_).status();
    EXPECT_TRUE(absl::IsDataLoss(none)) << none;
    EXPECT_THAT(std::string(none.message()), HasSubstr("remove " + checkpoints + " to train"));
  }
}

TEST_F(CheckpointTest, RefusesAnotherRunAndAnotherStudent) {
  CheckpointStore store(folder_.path());
  const auto name = store.Write(Progress(20), state_, 1, alone_);
  ASSERT_TRUE(name.ok());
  StudentState other(SmallConfig(true), DType::kBF16);
  CheckpointRules another = Rules();
  another.run_hash = Sha256Of("another");
  EXPECT_EQ(store.Read(*name, another, &other).status().code(),
            absl::StatusCode::kFailedPrecondition);
  StudentState untied(SmallConfig(false), DType::kBF16);
  EXPECT_EQ(store.Read(*name, Rules(), &untied).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(store.Read("step-1.1.00", Rules(), &other).status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(CheckpointTest, KeepsTheNewestAndTheCommitted) {
  CheckpointStore store(folder_.path());
  std::vector<std::string> names;
  for (const uint64_t step : {5, 10, 100, 20}) {
    const auto name = store.Write(Progress(step), state_, 1, alone_);
    ASSERT_TRUE(name.ok());
    names.push_back(*name);
  }
  const auto listed = store.List();
  ASSERT_TRUE(listed.ok());
  EXPECT_THAT(*listed, ElementsAre(names[2], names[3], names[1], names[0]));
  ASSERT_TRUE(store.Prune(names[0], 2).ok());
  const auto left = store.List();
  ASSERT_TRUE(left.ok());
  EXPECT_THAT(*left, ElementsAre(names[2], names[3], names[0]));
}

}  // namespace
}  // namespace stillhouse

#include "student/checkpoint.h"

#include <sys/stat.h>

#include <fstream>

#include "common/file.h"
#include "common/random.h"
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
    progress.data = {3, 14};
    progress.seed = 0xfedcba9876543210u;
    progress.run_hash = hash_;
    progress.teacher_layers = {0, 1, 24, 29};
    progress.seconds = 1.0 / 3;
    progress.waited_s = 0.1;
    progress.best = 1.39;
    progress.best_step = 20;
    progress.evaluations = 2;
    return progress;
  }

  std::string Path(const std::string& name, const std::string& file) {
    return JoinPath(folder_.path(), "checkpoints/" + name + "/" + file);
  }

  TempFolder folder_;
  StudentState state_;
  const Digest hash_ = Sha256Of("run");
};

bool SameBits(const StudentState& a, const StudentState& b) {
  const size_t bytes = a.layout.size() * sizeof(float);
  return memcmp(a.masters.data(), b.masters.data(), bytes) == 0 &&
         memcmp(a.first.data(), b.first.data(), bytes) == 0 &&
         memcmp(a.second.data(), b.second.data(), bytes) == 0 &&
         memcmp(a.weights.data(), b.weights.data(), bytes / 2) == 0;
}

TEST_F(CheckpointTest, ReadsBackBitForBit) {
  CheckpointStore store(folder_.path());
  const auto name = store.Write(Progress(20), state_, /*run_epoch=*/2);
  ASSERT_TRUE(name.ok()) << name.status();
  EXPECT_THAT(*name, testing::StartsWith("step-20.2."));
  StudentState other(SmallConfig(true), DType::kBF16);
  const auto progress = store.Read(*name, hash_, &other);
  ASSERT_TRUE(progress.ok()) << progress.status();
  EXPECT_EQ(*progress, Progress(20));
  EXPECT_TRUE(SameBits(state_, other));
}

TEST_F(CheckpointTest, TheShardsBytesAreAsTheHeaderStates) {
  CheckpointStore store(folder_.path());
  const auto name = store.Write(Progress(20), state_, 1);
  ASSERT_TRUE(name.ok());
  const auto bytes = ReadFile(Path(*name, "rank-0-of-1.state"));
  ASSERT_TRUE(bytes.ok());
  const uint64_t n = state_.layout.size();
  std::string expected = "SHSTATE1";
  for (const uint64_t field : {n, uint64_t{0}, n}) {
    for (int byte = 0; byte < 8; ++byte) expected += static_cast<char>(field >> (8 * byte));
  }
  expected.resize(64, '\0');
  for (const FlatBuffer<float>* buffer : {&state_.masters, &state_.first, &state_.second}) {
    expected.append(reinterpret_cast<const char*>(buffer->data()), n * sizeof(float));
  }
  EXPECT_EQ(*bytes, expected);
}

TEST_F(CheckpointTest, WhereverAWriteStopsTheOlderOneStands) {
  CheckpointStore good(folder_.path());
  const auto first = good.Write(Progress(10), state_, 1);
  ASSERT_TRUE(first.ok());
  for (const std::string point : {"folder", "shard", "manifest", "rename", "sync"}) {
    Fill(2);
    CheckpointStore store(folder_.path(), [&](absl::string_view step) {
      return step == point ? absl::AbortedError("killed") : absl::OkStatus();
    });
    EXPECT_EQ(store.Write(Progress(20), state_, 1).status().code(), absl::StatusCode::kAborted);
    // A new process looks at what is there.
    CheckpointStore fresh(folder_.path());
    Fill(1);
    StudentState other(SmallConfig(true), DType::kBF16);
    ASSERT_TRUE(fresh.Read(*first, hash_, &other).ok()) << point;
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
  const auto first = store.Write(Progress(10), state_, 1);
  ASSERT_TRUE(first.ok()) << first.status();
  int refused = 0;
  for (size_t room = 0; room < (1 << 20); room += 8 << 10) {
    disk.LeaveRoom(room);
    const auto second = store.Write(Progress(20), state_, 1);
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
  ASSERT_TRUE(store.Read(*first, hash_, &other).ok());
  EXPECT_TRUE(SameBits(state_, other));
  ASSERT_TRUE(store.Read(store.List()->front(), hash_, &other).ok());
}

TEST_F(CheckpointTest, RefusesWhatIsDamaged) {
  CheckpointStore store(folder_.path());
  const auto name = store.Write(Progress(20), state_, 1);
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
      const absl::Status status = store.Read(*name, hash_, &other).status();
      EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << file << ": " << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr(file));
    }
    ASSERT_TRUE(WriteFileAtomically(Path(*name, file), *bytes).ok());
  }
  EXPECT_TRUE(store.Read(*name, hash_, &other).ok());
}

TEST_F(CheckpointTest, RefusesAnotherRunAndAnotherStudent) {
  CheckpointStore store(folder_.path());
  const auto name = store.Write(Progress(20), state_, 1);
  ASSERT_TRUE(name.ok());
  StudentState other(SmallConfig(true), DType::kBF16);
  EXPECT_EQ(store.Read(*name, Sha256Of("another"), &other).status().code(),
            absl::StatusCode::kFailedPrecondition);
  StudentState untied(SmallConfig(false), DType::kBF16);
  EXPECT_EQ(store.Read(*name, hash_, &untied).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(store.Read("step-1.1.00", hash_, &other).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(CheckpointTest, KeepsTheNewestAndTheCommitted) {
  CheckpointStore store(folder_.path());
  std::vector<std::string> names;
  for (const uint64_t step : {5, 10, 100, 20}) {
    const auto name = store.Write(Progress(step), state_, 1);
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

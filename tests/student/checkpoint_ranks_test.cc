// Checkpoints that several ranks write and another number of ranks reads.
#include <algorithm>
#include <cstring>

#include "common/file.h"
#include "common/random.h"
#include "common/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "student/checkpoint.h"
#include "tests/student/on_ranks.h"
#include "tests/student/small_student.h"

namespace stillhouse {
namespace {

using ::testing::HasSubstr;

const Digest kRun = Sha256Of("run");

CheckpointRules Rules() {
  return {.run_hash = kRun,
          .seed = 4,
          .teacher_layers = {0, 1},
          .steps = 100,
          .step_rows = 60,
          .epoch_documents = 100,
          .epoch_rows = 300};
}

RunProgress Progress(uint64_t step) {
  RunProgress progress;
  progress.step = step;
  progress.data = {1, 14};
  progress.seed = 4;
  progress.run_hash = kRun;
  progress.teacher_layers = {0, 1};
  progress.skipped = {3, 1};
  return progress;
}

StudentState StateOf(int rank, int ranks, size_t bucket) {
  return StudentState(SmallConfig(true), DType::kBF16,
                      ShardOptions{rank, ranks, {.elements_max = bucket}});
}

// Three numbers of a place, whoever owns it.
std::vector<float> NumbersAt(size_t flat, uint64_t seed) {
  RandomStream random(seed, flat);
  return {static_cast<float>(random.NextNormal()), static_cast<float>(random.NextNormal()),
          static_cast<float>(random.NextNormal())};
}

void Fill(StudentState& state, uint64_t seed) {
  for (const ShardPiece& piece : state.pieces) {
    for (size_t i = 0; i < piece.flat.size(); ++i) {
      const std::vector<float> numbers = NumbersAt(piece.flat.begin + i, seed);
      state.masters.data()[piece.local + i] = numbers[0];
      state.first.data()[piece.local + i] = numbers[1];
      state.second.data()[piece.local + i] = numbers[2];
    }
  }
}

bool IsFilled(const StudentState& state, uint64_t seed) {
  for (const ShardPiece& piece : state.pieces) {
    for (size_t i = 0; i < piece.flat.size(); ++i) {
      const std::vector<float> numbers = NumbersAt(piece.flat.begin + i, seed);
      const size_t at = piece.local + i;
      if (state.masters.data()[at] != numbers[0] || state.first.data()[at] != numbers[1] ||
          state.second.data()[at] != numbers[2] ||
          state.weights.data()[piece.flat.begin + i] != FloatToBf16(numbers[0])) {
        return false;
      }
    }
  }
  return true;
}

class CheckpointRanksTest : public testing::Test {
 protected:
  CheckpointRanksTest() : folder_(*TempFolder::Create()) {}

  // The name that all ranks returned.
  std::string Write(int ranks, uint64_t step, uint64_t seed, size_t bucket = 1000) {
    std::vector<std::string> names(static_cast<size_t>(ranks));
    OnRanks(ranks, [&](Communicator& communicator) {
      RankGroup group(&communicator);
      StudentState state = StateOf(group.rank(), ranks, bucket);
      Fill(state, seed);
      CheckpointStore store(folder_.path());
      const auto name = store.Write(Progress(step), state, 1, group);
      SH_CHECK_OK(name);
      names[static_cast<size_t>(group.rank())] = *name;
    });
    for (const std::string& name : names) EXPECT_EQ(name, names[0]);
    return names[0];
  }
  std::string Path(const std::string& name, const std::string& file) {
    return JoinPath(folder_.path(), "checkpoints/" + name + "/" + file);
  }

  TempFolder folder_;
};

TEST_F(CheckpointRanksTest, WhatAnyNumberWroteAnyNumberReadsBitForBit) {
  for (int writers = 1; writers <= 4; ++writers) {
    const std::string name = Write(writers, 20, static_cast<uint64_t>(writers));
    for (int readers = 1; readers <= 4; ++readers) {
      // Another size of buckets gives other shards.
      for (const size_t bucket : {size_t{1000}, size_t{1} << 20}) {
        OnRanks(readers, [&](Communicator& communicator) {
          RankGroup group(&communicator);
          StudentState state = StateOf(group.rank(), readers, bucket);
          CheckpointStore store(folder_.path());
          const auto found = store.ReadNewest(name, Rules(), &state, group);
          ASSERT_TRUE(found.ok()) << found.status();
          EXPECT_EQ(found->progress, Progress(20));
          EXPECT_TRUE(IsFilled(state, static_cast<uint64_t>(writers))) << writers << readers;
        });
      }
    }
  }
}

TEST_F(CheckpointRanksTest, ADamagedShardIsNamedAndTheOlderOneReadByAll) {
  const std::string older = Write(3, 10, 1), newer = Write(3, 20, 2);
  for (const int readers : {1, 2, 3}) {
    for (int damaged = 0; damaged < 3; ++damaged) {
      const std::string file = absl::StrCat("rank-", damaged, "-of-3.state");
      const std::string whole = *ReadFile(Path(newer, file));
      for (const size_t place : {size_t{0}, size_t{12}, size_t{20}, size_t{70}, whole.size() - 1}) {
        std::string bytes = whole;
        bytes[place] ^= 1;
        SH_CHECK_OK(WriteFileAtomically(Path(newer, file), bytes));
        OnRanks(readers, [&](Communicator& communicator) {
          RankGroup group(&communicator);
          StudentState state = StateOf(group.rank(), readers, 1000);
          CheckpointStore store(folder_.path());
          const absl::Status mine = store.Read(newer, Rules(), &state).status();
          const absl::Status agreed = group.Agree(mine);
          EXPECT_TRUE(absl::IsDataLoss(agreed)) << place << agreed;
          EXPECT_THAT(std::string(agreed.message()), HasSubstr(file)) << place;
          const auto found = store.ReadNewest(newer, Rules(), &state, group);
          ASSERT_TRUE(found.ok()) << found.status();
          EXPECT_EQ(found->name, older);
          EXPECT_TRUE(IsFilled(state, 1));
        });
      }
      SH_CHECK_OK(WriteFileAtomically(Path(newer, file), whole));
    }
  }
}

TEST_F(CheckpointRanksTest, WhereverAWriteStopsOnWhicheverRankTheOlderOneStands) {
  const std::string older = Write(2, 10, 1);
  for (int stopped = 0; stopped < 2; ++stopped) {
    for (const std::string point : {"folder", "shard", "manifest", "rename", "sync"}) {
      if (stopped == 1 && point != "shard") continue;  // the rest is the first rank's work
      OnRanks(2, [&](Communicator& communicator) {
        RankGroup group(&communicator);
        StudentState state = StateOf(group.rank(), 2, 1000);
        Fill(state, 2);
        CheckpointStore store(folder_.path(), [&](absl::string_view step) {
          return step == point && group.rank() == stopped ? absl::AbortedError("killed")
                                                          : absl::OkStatus();
        });
        const absl::Status written = store.Write(Progress(20), state, 1, group).status();
        EXPECT_TRUE(absl::IsAborted(written)) << written;
        EXPECT_TRUE(group.HasAgreedOn(written));
      });
      OnRanks(2, [&](Communicator& communicator) {
        RankGroup group(&communicator);
        StudentState state = StateOf(group.rank(), 2, 1000);
        CheckpointStore store(folder_.path());
        const auto found = store.ReadNewest(older, Rules(), &state, group);
        ASSERT_TRUE(found.ok()) << found.status();
        EXPECT_EQ(found->name, older);
        EXPECT_TRUE(IsFilled(state, 1));
      });
      CheckpointStore fresh(folder_.path());
      ASSERT_TRUE(fresh.Prune(older, 1).ok());
      const auto left = ListFolder(JoinPath(folder_.path(), "checkpoints"));
      ASSERT_TRUE(left.ok());
      for (const std::string& name : *left) EXPECT_THAT(name, testing::Not(HasSubstr(".tmp")));
    }
  }
}

TEST_F(CheckpointRanksTest, AShardOfAnotherNumberOfRanksIsNotTaken) {
  const std::string name = Write(2, 20, 1), other = Write(3, 20, 1);
  SH_CHECK_OK(WriteFileAtomically(Path(name, "rank-1-of-2.state"),
                                  *ReadFile(Path(other, "rank-1-of-3.state"))));
  StudentState state = StateOf(0, 1, 1000);
  const absl::Status read = CheckpointStore(folder_.path()).Read(name, Rules(), &state).status();
  EXPECT_TRUE(absl::IsDataLoss(read)) << read;
  EXPECT_THAT(std::string(read.message()), HasSubstr("rank-1-of-2.state"));
}

}  // namespace
}  // namespace stillhouse

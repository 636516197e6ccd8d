// A bounded cache: what is leased, what makes room, and that nobody waits for ever.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coordinator/admin_view.h"
#include "coordinator/journal_rows.h"
#include "tests/coordinator/state_fixture.h"

namespace stillhouse {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint64_t kWorst = 100, kActual = 60;  // bytes of a chunk
constexpr size_t kLookAhead = 4;

class RoomTest : public StateTest {
 protected:
  SubmitEvent Bounded(int training, uint64_t bytes_max, int held_out = 0) {
    SubmitEvent event = Submission(training, held_out);
    for (ChunkSpec& chunk : event.chunks) chunk.bytes_max = kWorst;
    event.retention.bytes_max = bytes_max;
    bytes_max_ = bytes_max;
    return event;
  }
  void SubmitBounded(int training, uint64_t bytes_max, int held_out = 0) {
    Submit(Bounded(training, bytes_max, held_out));
    Answer();
    Register("t", 1);
  }
  uint64_t Used() const { return durable_.size() * kActual; }
  // The cache answers all that it was asked.
  void Answer() {
    AnswerCache();
    while (!effects_.rooms.empty()) {
      const RoomAsk ask = effects_.rooms.front();
      effects_.rooms.erase(effects_.rooms.begin());
      for (const uint32_t chunk : ask.release) {
        released_.push_back(chunk);
        if (!shared_.contains(chunk)) durable_.erase(chunk);
      }
      OnRoom(state_, ask, Used(), effects_);
      AnswerCache();
    }
  }
  // One question for a lease; what is granted is computed.
  std::optional<uint32_t> Compute() {
    const LeaseAnswer answer = Lease("t", 1);
    if (answer.grant.has_value()) {
      EXPECT_LE(Used() + kWorst, bytes_max_);
      Finish(*answer.grant, "t", 1);
      ++computed_[answer.grant->chunk];
    }
    Answer();
    Beat("t", 1, {}, "ready");
    if (!answer.grant.has_value()) return std::nullopt;
    return answer.grant->chunk;
  }
  // As often as it takes until nothing is given three times.
  void ComputeAll() {
    for (int idle = 0; idle < 3;) idle = Compute().has_value() ? 0 : idle + 1;
  }

  // Reads chunks in its order; each step asks for what comes and reads what is first, if it is
  // there.
  struct Reader {
    std::string run;
    std::vector<uint32_t> order;
    size_t at = 0;
    uint64_t epoch = 0;
    bool Done() const { return at == order.size(); }
  };
  Reader Start(const std::string& run, std::vector<uint32_t> order, uint64_t incarnation) {
    const auto started = OnStartRun(state_, {run, incarnation, "host", 1}, now_, effects_);
    EXPECT_TRUE(started.ok()) << started.status();
    return {run, std::move(order), 0, started.ok() ? started->run->epoch : 0};
  }
  void Step(Reader& reader) {
    if (reader.Done()) return;
    WantEvent event{reader.run, reader.epoch, {}};
    std::set<uint32_t> listed;
    for (size_t i = reader.at; i < reader.order.size() && listed.size() < kLookAhead; ++i) {
      if (!listed.insert(reader.order[i]).second) continue;
      event.items.emplace_back(reader.order[i], absl::Seconds(10 * (i - reader.at)));
    }
    const auto answer = OnWant(state_, event, now_, effects_);
    ASSERT_TRUE(answer.ok()) << answer.status();
    if (answer->states.front() != ChunkAnswer::kDurable) return;
    ASSERT_TRUE(durable_.contains(reader.order[reader.at])) << "what it was promised is gone";
    ++reader.at;
    if (reader.Done()) {
      RunProgress progress;
      progress.phase = "finished";
      EXPECT_TRUE(OnReport(state_, reader.run, reader.epoch, progress, now_, effects_).ok());
    }
  }
  static std::vector<uint32_t> Order(uint32_t chunks, uint32_t stride, int epochs = 1) {
    std::vector<uint32_t> order;
    for (int epoch = 0; epoch < epochs; ++epoch) {
      for (uint32_t i = 0; i < chunks; ++i) order.push_back(i * (stride + 2 * epoch) % chunks);
    }
    return order;
  }

  uint64_t bytes_max_ = 0;
  std::set<uint32_t> shared_;  // wanted by others: a release leaves them
  std::vector<uint32_t> released_;
  std::map<uint32_t, int> computed_;
};

TEST_F(RoomTest, LeasesStopBeforeTheLimitAndNothingIsFreedForNobody) {
  SubmitBounded(40, 1600);
  ComputeAll();
  // Of 1600 an eighth is left free; 22 chunks and one at its worst fit below the rest.
  EXPECT_EQ(durable_.size(), 22u);
  EXPECT_THAT(released_, IsEmpty());
  EXPECT_EQ(job().phase, JobPhase::kCapturing);
  EXPECT_THAT(effects_.warnings, Contains(HasSubstr("does not fit: 1320 of 1600 bytes")));
}

TEST_F(RoomTest, LeasesUnderWayAreReservedAtTheirWorst) {
  SubmitBounded(40, 800);  // 700 may be used: seven at a time
  for (int i = 0; i < 10; ++i) Register(absl::StrCat("w", i), 1);
  EXPECT_FALSE(Lease("w0", 1).grant.has_value());  // first it is asked what is used
  Answer();
  Finish(MustLease("w0", 1), "w0", 1);  // the first chunk is captured alone
  Answer();
  int granted = 0;
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < 10; ++i) {
      const auto before = job().chunks.leased().size();
      Lease(absl::StrCat("w", i), 1);
      granted += job().chunks.leased().size() > before;
      Answer();
    }
  }
  EXPECT_EQ(granted, 6);  // and 60 bytes of the first
}

TEST_F(RoomTest, HalfOfThePlanIsEnoughForOneRunAfterAnother) {
  SubmitBounded(41, 41 * kActual / 2);
  uint64_t incarnation = 0;
  for (const std::string run : {"run/j/a", "run/j/b"}) {
    Reader reader = Start(run, Order(41, run == "run/j/a" ? 3 : 7), ++incarnation);
    for (int i = 0; i < 2000 && !reader.Done(); ++i) {
      Step(reader);
      Compute();
      now_ += absl::Milliseconds(100);
    }
    EXPECT_TRUE(reader.Done()) << run << " stands at " << reader.at;
  }
  EXPECT_EQ(computed_.size(), 41u);
  EXPECT_FALSE(released_.empty());
  EXPECT_EQ(job().phase, JobPhase::kCaptured);
  EXPECT_TRUE(Lease("t", 1).all_done);
}

TEST_F(RoomTest, RunsBesideEachOtherBothEnd) {
  SubmitBounded(41, 41 * kActual / 2);
  Reader a = Start("run/j/a", Order(41, 3), 1), b = Start("run/j/b", Order(41, 7), 2);
  for (int i = 0; i < 4000 && !(a.Done() && b.Done()); ++i) {
    Step(a);
    if (i % 3 == 0) Step(b);  // the slower one loses nothing
    Compute();
    now_ += absl::Milliseconds(100);
  }
  EXPECT_TRUE(a.Done()) << a.at;
  EXPECT_TRUE(b.Done()) << b.at;
  EXPECT_EQ(job().phase, JobPhase::kCaptured);
}

TEST_F(RoomTest, ALaterEpochAndARestartedRunAreCapturedForAgain) {
  SubmitBounded(41, 41 * kActual / 2);
  Reader a = Start("run/j/a", Order(41, 3, /*epochs=*/2), 1);
  EXPECT_TRUE(OnCancel(state_, "run/j/b", effects_).ok());
  bool restarted = false;
  for (int i = 0; i < 8000 && !a.Done(); ++i) {
    if (!restarted && a.at == 60) {  // back to a checkpoint
      Reader again = Start("run/j/a", a.order, 2);
      again.at = 25;
      a = again;
      restarted = true;
    }
    Step(a);
    Compute();
    now_ += absl::Milliseconds(100);
  }
  EXPECT_TRUE(a.Done()) << a.at;
  EXPECT_EQ(computed_.size(), 41u);
  int again = 0;
  for (const auto& [chunk, times] : computed_) again += times > 1;
  EXPECT_GT(again, 0);
  EXPECT_GT(job().rows_computed, 41 * 100u);
}

TEST_F(RoomTest, WhatEveryRunHasReadGoesFirst) {
  SubmitBounded(20, 1000);
  Reader a = Start("run/j/a", Order(20, 1), 1), b = Start("run/j/b", Order(20, 1), 2);
  for (int i = 0; i < 40; ++i) {
    Step(a);
    if (b.at + 2 < a.at) Step(b);
    Compute();
    now_ += absl::Milliseconds(100);
  }
  ASSERT_FALSE(released_.empty());
  for (const uint32_t chunk : released_) EXPECT_LT(chunk, b.at) << "b had not read it";
}

TEST_F(RoomTest, WhatOthersWantIsNotReleasedAgain) {
  SubmitBounded(41, 41 * kActual / 2);
  for (uint32_t i = 0; i < 5; ++i) shared_.insert(i);
  Reader a = Start("run/j/a", Order(41, 1), 1);
  EXPECT_TRUE(OnCancel(state_, "run/j/b", effects_).ok());
  for (int i = 0; i < 2000 && !a.Done(); ++i) {
    Step(a);
    Compute();
    now_ += absl::Milliseconds(100);
  }
  EXPECT_TRUE(a.Done()) << a.at;
  for (const uint32_t chunk : shared_) {
    EXPECT_LE(std::count(released_.begin(), released_.end(), chunk), 1) << chunk;
  }
}

TEST_F(RoomTest, WhenThePinIsGoneTheRunGoesOn) {
  SubmitBounded(41, 41 * kActual / 2);
  for (uint32_t i = 0; i < 41; ++i) shared_.insert(i);
  Reader a = Start("run/j/a", Order(41, 1), 1);
  EXPECT_TRUE(OnCancel(state_, "run/j/b", effects_).ok());
  const auto go_on = [&] {
    for (int i = 0; i < 2000 && !a.Done(); ++i) {
      Step(a);
      Compute();
      now_ += absl::Milliseconds(100);
    }
  };
  go_on();
  EXPECT_FALSE(a.Done());
  EXPECT_THAT(ViewState(state_, "j", now_)->jobs[0].problem, HasSubstr("does not fit"));
  shared_.clear();
  go_on();
  EXPECT_TRUE(a.Done()) << a.at;
  EXPECT_EQ(ViewState(state_, "j", now_)->jobs[0].problem, "");
}

TEST_F(RoomTest, ASilentRunLosesItsClaim) {
  SubmitBounded(30, 1000);
  Reader gone = Start("run/j/b", Order(30, 1), 1);
  for (int i = 0; i < 5; ++i) {
    Step(gone);
    Compute();
  }
  for (int i = 0; i < 14; ++i) {
    Pass(kRunSilenceMax / 10);
    Beat("t", 1, {}, "ready");
  }
  Reader a = Start("run/j/a", Order(30, 1), 2);
  for (int i = 0; i < 1000 && !a.Done(); ++i) {
    Step(a);
    Compute();
    now_ += absl::Milliseconds(100);
  }
  EXPECT_TRUE(a.Done()) << a.at;
}

TEST_F(RoomTest, HeldOutChunksAndTheFirstStay) {
  SubmitBounded(20, 1000, /*held_out=*/3);
  Reader a = Start("run/j/a", Order(20, 1), 1);
  const auto held_out =
      OnWant(state_, {"run/j/a", a.epoch, {{20, absl::ZeroDuration()}, {21, absl::ZeroDuration()}}},
             now_, effects_);
  ASSERT_TRUE(held_out.ok());
  for (int i = 0; i < 1000 && !a.Done(); ++i) {
    Step(a);
    Compute();
    now_ += absl::Milliseconds(100);
  }
  EXPECT_TRUE(a.Done());
  for (const uint32_t chunk : released_) EXPECT_TRUE(chunk > 0 && chunk < 20) << chunk;
}

TEST_F(RoomTest, ABoundedCacheIsOneJobs) {
  SubmitBounded(5, 1000);
  SubmitEvent other = Submission(5);
  other.name = "other";
  other.key = "key-2";
  other.runs.clear();
  const absl::Status refused = OnSubmit(state_, other, now_, effects_).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("coordinatorctl cancel job/j"));
  EXPECT_TRUE(OnCancel(state_, "job/j", effects_).ok());
  EXPECT_TRUE(OnSubmit(state_, other, now_, effects_).ok());
  SubmitEvent back = Bounded(5, 1000);
  back.key = "key-3";
  EXPECT_FALSE(OnSubmit(state_, back, now_, effects_).ok());
}

TEST_F(RoomTest, SizesAndLimitComeTogether) {
  SubmitEvent event = Bounded(5, 1000);
  event.chunks[2].bytes_max = 0;
  EXPECT_EQ(OnSubmit(state_, event, now_, effects_).status().code(),
            absl::StatusCode::kInvalidArgument);
  event = Submission(5);
  event.chunks[2].bytes_max = 7;
  EXPECT_FALSE(OnSubmit(state_, event, now_, effects_).ok());
}

TEST_F(RoomTest, TheLimitIsJournaled) {
  SubmitBounded(5, 1000);
  State read;
  for (const JournalChange& change : EncodeRows(state_, effects_.rows)) {
    if (change.kind != JournalChange::Kind::kPut) continue;
    ASSERT_TRUE(DecodeRow(change.key, change.value, &read).ok()) << change.key;
  }
  EXPECT_EQ(read.jobs.at("job/j").retention.bytes_max, 1000u);
  EXPECT_EQ(read.jobs.at("job/j").chunks.specs(), job().chunks.specs());
}

}  // namespace
}  // namespace stillhouse

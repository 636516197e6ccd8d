#include "coordinator/journal.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <filesystem>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "common/file.h"
#include "common/utf8.h"
#include "tests/coordinator/state_fixture.h"

namespace stillhouse {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class JournalTest : public StateTest {
 protected:
  // Everything that the events so far marked is written.
  void WriteTo(Journal& journal) {
    ASSERT_TRUE(journal.Write(EncodeRows(state_, effects_.rows)).ok());
    effects_.rows.clear();
  }
};

TEST_F(JournalTest, WhatWasJournaledComesBackAndTheRestDoesNot) {
  const auto store = MakeMemoryKvStore(1);
  absl::StatusOr<Journal::Opened> opened = Journal::OpenOver(*store);
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ(opened->state.incarnation, 1);
  state_ = std::move(opened->state);

  SubmitAndReconcile(300, 2);
  state_.jobs.at("job/j").capture.first_chunk_artefacts = {"influence/p"};
  Register("t", 1);
  Finish(MustLease("t", 1), "t", 1);
  Fail(MustLease("t", 1), "t", 1, /*chunk_at_fault=*/true);
  for (uint64_t i = 2; i <= kChunkFailuresMax; ++i) {
    Register("t", i);
    Fail(MustLease("t", i), "t", i, /*chunk_at_fault=*/true);
  }
  const GrantRef leased = MustLease("t", kChunkFailuresMax);
  ASSERT_TRUE(OnStartRun(state_, {"run/j/a", 5, "h", 1}, now_, effects_).ok());
  RunProgress progress;
  progress.phase = "training";
  progress.evaluation = RunEvaluation{.step = 20, .perplexity = 90, .kl = 1.25, .agreement = 0.5};
  ASSERT_TRUE(OnReport(state_, "run/j/a", 1, progress, now_, effects_).ok());
  ASSERT_TRUE(OnCommitCheckpoint(state_, "run/j/a", 1, 20, "step-20.1.ab", effects_).ok());
  WriteTo(*opened->journal);

  absl::StatusOr<Journal::Opened> again = Journal::OpenOver(*store);
  ASSERT_TRUE(again.ok()) << again.status();
  const State& state = again->state;
  EXPECT_EQ(state.incarnation, 2);
  const Job& job = state.jobs.at("job/j");
  EXPECT_EQ(job.recipe_text, "name: j\n");
  EXPECT_EQ(job.capture, state_.jobs.at("job/j").capture);
  EXPECT_EQ(job.chunks.specs(), state_.jobs.at("job/j").chunks.specs());
  EXPECT_EQ(job.chunks.at(0).state, ChunkState::kDurable);
  EXPECT_EQ(job.chunks.at(1).state, ChunkState::kPoisoned);
  EXPECT_EQ(job.chunks.at(1).failures, state_.jobs.at("job/j").chunks.at(1).failures);
  EXPECT_EQ(job.chunks.at(leased.chunk).state, ChunkState::kPending) << "leases are volatile";
  EXPECT_EQ(job.chunks.rows_durable(), 100);
  EXPECT_EQ(job.rows_computed, 100);
  EXPECT_THAT(job.runs, ElementsAre("run/j/a", "run/j/b"));
  const auto& run = state.runs.at("run/j/a");
  EXPECT_EQ(run.epoch, 1);
  EXPECT_EQ(run.incarnation, 5);
  EXPECT_EQ(run.checkpoint, "step-20.1.ab");
  EXPECT_EQ(run.teacher_rows_charged, 100);
  EXPECT_EQ(run.best->kl, 1.25);
  EXPECT_EQ(run.last.phase, "training");
  EXPECT_EQ(SerializeAdminView(*ViewState(state, "run/j/a", now_)), [&] {
    AdminView live = *ViewState(state_, "run/j/a", now_);
    live.coordinator_incarnation = 2;
    live.jobs[0].chunks_leased = 0;
    return SerializeAdminView(live);
  }());
}

TEST_F(JournalTest, AnIdempotencyKeyOutlivesARestart) {
  const auto store = MakeMemoryKvStore(1);
  absl::StatusOr<Journal::Opened> opened = Journal::OpenOver(*store);
  ASSERT_TRUE(opened.ok());
  Submit(Submission(2));
  WriteTo(*opened->journal);
  opened = Journal::OpenOver(*store);
  ASSERT_TRUE(opened.ok());
  state_ = std::move(opened->state);
  const uint64_t generation = job().generation;
  EXPECT_FALSE(Submit(Submission(2)).resumed);
  EXPECT_EQ(job().generation, generation);
}

TEST_F(JournalTest, AReplacedPlanLeavesNoChunkOfTheOldOne) {
  const auto store = MakeMemoryKvStore(1);
  absl::StatusOr<Journal::Opened> opened = Journal::OpenOver(*store);
  ASSERT_TRUE(opened.ok());
  SubmitAndReconcile(300);
  SubmitEvent neighbour = Submission(1);
  neighbour.name = "j-2";  // its keys come right after those of "j"
  neighbour.runs.clear();
  Submit(neighbour);
  durable_ = {0};
  AnswerCache();
  for (uint32_t i = 0; i < 300; ++i) durable_.insert(i);
  OnInventory(state_, {"job/j", job().generation, {0, 255, 299}}, {true, true, true}, now_,
              effects_);
  WriteTo(*opened->journal);
  SubmitEvent event = Submission(3);
  event.key = "key-2";
  event.capture.plan = Sha256Of("plan 2");
  Submit(event);
  WriteTo(*opened->journal);
  opened = Journal::OpenOver(*store);
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ(opened->state.jobs.at("job/j").chunks.CountIn(ChunkState::kPending), 3);
  EXPECT_EQ(opened->state.jobs.at("job/j-2").chunks.CountIn(ChunkState::kDurable), 1);
}

TEST_F(JournalTest, QuarantineOutlivesARestart) {
  const auto store = MakeMemoryKvStore(1);
  absl::StatusOr<Journal::Opened> opened = Journal::OpenOver(*store);
  ASSERT_TRUE(opened.ok());
  SubmitAndReconcile(5);
  Register("t", 1);
  for (int i = 0; i < kWorkerFailuresMax; ++i) Fail(MustLease("t", 1), "t", 1, false);
  WriteTo(*opened->journal);
  opened = Journal::OpenOver(*store);
  ASSERT_TRUE(opened.ok()) << opened.status();
  state_ = std::move(opened->state);
  OnOpened(state_, now_, effects_);
  AnswerCache();
  Register("t", 1);
  EXPECT_THAT(Lease("t", 1).leave, HasSubstr("one after another"));
  Register("t", 2);
  EXPECT_TRUE(Lease("t", 2).grant.has_value());
  WriteTo(*opened->journal);
  opened = Journal::OpenOver(*store);
  ASSERT_TRUE(opened.ok());
  EXPECT_TRUE(opened->state.workers.empty());
}

TEST_F(JournalTest, FailuresWithLongTextInAnyLanguageAreReadBack) {
  const auto store = MakeMemoryKvStore(1);
  absl::StatusOr<Journal::Opened> opened = Journal::OpenOver(*store);
  ASSERT_TRUE(opened.ok());
  SubmitAndReconcile(5);
  Register("t", 1);
  Finish(MustLease("t", 1), "t", 1);
  std::string reason = "x";
  while (reason.size() <= kReasonBytesMax) reason += "\xc3\xa9";
  for (int i = 0; i < kWorkerFailuresMax; ++i) {
    const bool chunk_at_fault = i == 0;
    ASSERT_TRUE(OnFailed(state_, {{"t", 1}, MustLease("t", 1), reason, chunk_at_fault, false}, now_,
                         effects_)
                    .ok());
  }
  ASSERT_TRUE(OnStartRun(state_, {"run/j/a", 5, "h", 1}, now_, effects_).ok());
  RunProgress progress;
  progress.phase = "failed";
  progress.message = reason + "\xff";
  ASSERT_TRUE(OnReport(state_, "run/j/a", 1, progress, now_, effects_).ok());
  WriteTo(*opened->journal);
  opened = Journal::OpenOver(*store);
  ASSERT_TRUE(opened.ok()) << opened.status();
  const State& state = opened->state;
  EXPECT_TRUE(IsUtf8(state.jobs.at("job/j").chunks.at(1).failures.at(0).reason));
  EXPECT_TRUE(IsUtf8(state.workers.at("t").leave));
  EXPECT_TRUE(IsUtf8(state.runs.at("run/j/a").last.message));
  EXPECT_TRUE(ParseAdminView(SerializeAdminView(*ViewState(state, "", now_))).ok());
}

// A version before this one cut texts inside a character; such rows are in journals.
TEST_F(JournalTest, RowsWithHalfACharacterAreReadAndMended) {
  SubmitAndReconcile(2);
  Register("t", 1);
  job().problem = "caf\xc3";
  job().chunks.Restore(0, ChunkState::kPending, {{{"t", 1}, "caf\xc3"}}, {});
  state_.workers.at("t").leave = "caf\xc3";
  state_.runs.at("run/j/a").last.message = "caf\xc3";
  effects_.rows = {{RowRef::Kind::kJob, "job/j"},      {RowRef::Kind::kJobState, "job/j"},
                   {RowRef::Kind::kChunk, "job/j", 0}, {RowRef::Kind::kRun, "run/j/a"},
                   {RowRef::Kind::kRun, "run/j/b"},    {RowRef::Kind::kQuarantine, "t"}};
  State state;
  for (const JournalChange& change : EncodeRows(state_, effects_.rows)) {
    const absl::Status status = DecodeRow(change.key, change.value, &state);
    EXPECT_TRUE(status.ok()) << status;
  }
  const std::string mended = "caf\xef\xbf\xbd";
  EXPECT_EQ(state.jobs.at("job/j").problem, mended);
  EXPECT_EQ(state.jobs.at("job/j").chunks.at(0).failures.at(0).reason, mended);
  EXPECT_EQ(state.workers.at("t").leave, mended);
  EXPECT_EQ(state.runs.at("run/j/a").last.message, mended);
}

// One line for each row: key and value in hexadecimal digits.
std::string HexLines(const std::vector<JournalChange>& changes) {
  std::string lines;
  for (const JournalChange& change : changes) {
    if (change.kind != JournalChange::Kind::kPut) continue;
    absl::StrAppend(&lines, absl::BytesToHexString(change.key), " ",
                    absl::BytesToHexString(change.value), "\n");
  }
  return lines;
}

TEST_F(JournalTest, TheBytesOfVersion1StayAsTheyAre) {
  SubmitAndReconcile(3, 1);
  Register("t", 1);
  Finish(MustLease("t", 1), "t", 1);
  Fail(MustLease("t", 1), "t", 1, /*chunk_at_fault=*/true);
  for (int i = 1; i < kWorkerFailuresMax; ++i) Fail(MustLease("t", 1), "t", 1, false);
  ASSERT_TRUE(OnStartRun(state_, {"run/j/a", 5, "h", 1}, now_, effects_).ok());
  RunProgress progress;
  progress.phase = "training";
  progress.evaluation = RunEvaluation{.step = 20, .rows = 400, .perplexity = 90, .kl = 1.25};
  ASSERT_TRUE(OnReport(state_, "run/j/a", 1, progress, now_, effects_).ok());
  effects_.rows.insert({RowRef::Kind::kMeta, ""});

  const std::string golden_path =
      absl::StrCat(SH_TEST_SOURCE_DIR, "/tests/coordinator/journal_v1.golden");
  const absl::StatusOr<std::string> golden = ReadFile(golden_path);
  const std::string now = HexLines(EncodeRows(state_, effects_.rows));
  const std::string actual_path = JoinPath(::testing::TempDir(), "journal_v1.actual");
  if (!golden.ok() || *golden != now) {
    ASSERT_TRUE(WriteFileAtomically(actual_path, now).ok());
  }
  ASSERT_TRUE(golden.ok()) << golden.status() << "; what is written now: " << actual_path;
  EXPECT_EQ(*golden, now) << "what is written now: " << actual_path;

  State state;
  for (absl::string_view line : absl::StrSplit(*golden, '\n', absl::SkipEmpty())) {
    const std::pair<absl::string_view, absl::string_view> row = absl::StrSplit(line, ' ');
    ASSERT_TRUE(
        DecodeRow(absl::HexStringToBytes(row.first), absl::HexStringToBytes(row.second), &state)
            .ok());
  }
  ASSERT_TRUE(CheckRestored(state).ok());
  EXPECT_EQ(state.jobs.at("job/j").chunks.CountIn(ChunkState::kDurable), 1);
  EXPECT_EQ(state.jobs.at("job/j").chunks.at(1).failures.size(), 1);
  EXPECT_EQ(state.runs.at("run/j/a").best->kl, 1.25);
  EXPECT_THAT(state.workers.at("t").leave, HasSubstr("one after another"));
}

TEST_F(JournalTest, ADamagedOrSwappedRowIsNamed) {
  const auto store = MakeMemoryKvStore(1);
  absl::StatusOr<Journal::Opened> opened = Journal::OpenOver(*store);
  ASSERT_TRUE(opened.ok());
  Submit(Submission(2));
  const std::vector<JournalChange> changes = EncodeRows(state_, effects_.rows);
  ASSERT_GE(changes.size(), 3);
  for (const JournalChange& change : changes) {
    if (change.kind != JournalChange::Kind::kPut) continue;
    for (size_t i = 0; i < change.value.size(); i += 7) {
      std::string damaged = change.value;
      damaged[i] = static_cast<char>(damaged[i] ^ 0x10);
      State state;
      const absl::Status status = DecodeRow(change.key, damaged, &state);
      EXPECT_TRUE(absl::IsDataLoss(status)) << status;
      EXPECT_THAT(status.message(), HasSubstr(change.key));
    }
    State state;
    EXPECT_TRUE(absl::IsDataLoss(DecodeRow(change.key + "x", change.value, &state)));
    EXPECT_TRUE(absl::IsDataLoss(
        DecodeRow(change.key, absl::string_view(change.value).substr(0, 9), &state)));
  }
}

TEST_F(JournalTest, OnDiskItIsHeldByOneAndReadByOthersWhenNobodyHoldsIt) {
  const absl::StatusOr<TempFolder> folder = TempFolder::Create();
  ASSERT_TRUE(folder.ok());
  const std::string path = JoinPath(folder->path(), "journal");
  EXPECT_TRUE(absl::IsNotFound(ReadJournal(path).status()));
  {
    absl::StatusOr<Journal::Opened> opened = Journal::Open(path, nullptr);
    ASSERT_TRUE(opened.ok()) << opened.status();
    absl::Duration paused;
    const absl::Status second =
        Journal::Open(path, nullptr, [&](absl::Duration pause) { paused += pause; }).status();
    EXPECT_TRUE(absl::IsFailedPrecondition(second)) << second;
    EXPECT_EQ(paused, absl::Seconds(2));
    EXPECT_THAT(second.message(), HasSubstr("held by another process"));
    EXPECT_TRUE(absl::IsFailedPrecondition(ReadJournal(path).status()));
    SubmitAndReconcile(2);
    Register("t", 1);
    Finish(MustLease("t", 1), "t", 1);
    WriteTo(*opened->journal);
  }  // no Close: what was written is durable without it
  const absl::StatusOr<AdminView> view = ReadJournal(path);
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(view->jobs[0].chunks_durable, 1);
  // A reader that holds it while a coordinator starts is waited for.
  auto reading = FileLock::Acquire(JoinPath(path, "STILLHOUSE.LOCK"), FileLock::Mode::kShared);
  ASSERT_TRUE(reading.ok()) << reading.status();
  int pauses = 0;
  const absl::Status started = Journal::Open(path, nullptr, [&](absl::Duration) {
                                 if (++pauses == 3) reading->reset();
                               }).status();
  EXPECT_TRUE(started.ok()) << started;
  EXPECT_EQ(pauses, 3);
  EXPECT_EQ(view->runs.size(), 2);
  EXPECT_TRUE(absl::IsNotFound(ReadJournal(path, "job/none").status()));
  const absl::StatusOr<Journal::Opened> again = Journal::Open(path, nullptr);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->state.incarnation, 3);
}

TEST_F(JournalTest, ALogThatIsGoneIsNotTakenForAnEmptyOne) {
  const absl::StatusOr<TempFolder> folder = TempFolder::Create();
  ASSERT_TRUE(folder.ok());
  const std::string path = JoinPath(folder->path(), "journal");
  const std::string crashed = JoinPath(folder->path(), "crashed");
  {
    absl::StatusOr<Journal::Opened> opened = Journal::Open(path, nullptr);
    ASSERT_TRUE(opened.ok()) << opened.status();
    SubmitAndReconcile(2);
    WriteTo(*opened->journal);
    // As a crash leaves it: a journal that is closed well needs no log.
    std::filesystem::copy(path, crashed, std::filesystem::copy_options::recursive);
  }
  const std::string database = JoinPath(crashed, "db");
  const auto files = ListFolder(database);
  ASSERT_TRUE(files.ok());
  for (const std::string& file : *files) {
    if (absl::EndsWith(file, ".log")) unlink(JoinPath(database, file).c_str());
  }
  const absl::Status started = Journal::Open(crashed, nullptr).status();
  EXPECT_TRUE(absl::IsDataLoss(started)) << started;
  EXPECT_THAT(started.message(), HasSubstr("is gone or empty"));
  const absl::Status shown = ReadJournal(crashed).status();
  EXPECT_TRUE(absl::IsDataLoss(shown)) << shown;
}

}  // namespace
}  // namespace stillhouse

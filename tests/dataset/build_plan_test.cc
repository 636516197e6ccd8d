#include "dataset/build_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "common/file.h"
#include "common/status.h"
#include "dataset/data_order.h"
#include "dataset/plan.h"
#include "tests/dataset/byte_tokenizer.h"

namespace stillhouse {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class BuildPlanTest : public testing::Test {
 protected:
  BuildPlanTest() : folder_(*TempFolder::Create()) {
    recipe_.sources = {{JoinPath(folder_.path(), "*.txt"), "docs"}};
    recipe_.max_tokens = 16;
    recipe_.chunk_tokens = 64;
    recipe_.held_out = 0.2;
    recipe_.shuffle_window = 3;
  }
  void Write(const std::string& name, absl::string_view bytes) {
    SH_CHECK_OK(WriteFileAtomically(JoinPath(folder_.path(), name), bytes));
  }
  void WriteCorpus(int files) {
    for (int i = 0; i < files; ++i) {
      Write(absl::StrCat("f", i, ".txt"),
            absl::StrCat("text number ", i, std::string(i % 40, 'x')));
    }
  }
  absl::StatusOr<BuiltPlan> Build() {
    return BuildPlan(recipe_, tokenizer_, {.folder = JoinPath(folder_.path(), "plans"), .seed = 3});
  }
  std::shared_ptr<const Plan> BuildAndOpen() {
    const auto built = Build();
    SH_CHECK_OK(built);
    notes_ = built->notes;
    auto plan = OpenPlan(built->path);
    SH_CHECK_OK(plan);
    SH_CHECK((*plan)->digest() == built->digest);
    return *plan;
  }
  std::string Text(const PlanDocument& document) {
    return *tokenizer_.Decode(document.tokens, /*skip_special=*/false);
  }

  TempFolder folder_;
  DatasetRecipe recipe_;
  ByteTokenizer tokenizer_;
  std::vector<std::string> notes_;
};

TEST_F(BuildPlanTest, PiecesOfASourceJoinToItsTextWithOneEnd) {
  recipe_.held_out = 0;
  Write("a.txt", "The quick brown fox jumps over the lazy dog.");
  const auto plan = BuildAndOpen();
  std::set<std::string> pieces;
  for (uint32_t i = 0; i < plan->document_count(); ++i) pieces.insert(Text(plan->document(i)));
  EXPECT_THAT(pieces, ElementsAre("The quick brown ", "fox jumps over t", "he lazy dog.<eos>"));
  EXPECT_EQ(plan->training_rows(), 15u + 15 + 12);
  EXPECT_EQ(plan->held_out_rows(), 0u);
  EXPECT_THAT(plan->domains(), ElementsAre("docs"));
  EXPECT_EQ(plan->vocabulary(), 258u);
}

TEST_F(BuildPlanTest, BeginningStandsBeforeEveryPieceWhereTheModelExpectsIt) {
  recipe_.held_out = 0;
  Write("a.txt", "12345678901234567890");
  tokenizer_ = ByteTokenizer(/*adds_bos=*/true, /*has_eos=*/false);
  const auto plan = BuildAndOpen();
  std::set<std::string> pieces;
  for (uint32_t i = 0; i < plan->document_count(); ++i) {
    pieces.insert(Text(plan->document(i)));
    EXPECT_EQ(plan->document(i).loss_mask[0], 0);
  }
  EXPECT_THAT(pieces, ElementsAre("<bos>123456789012345", "<bos>67890"));
}

TEST_F(BuildPlanTest, IdsAndMasksAreTakenAsWritten) {
  recipe_.sources = {{JoinPath(folder_.path(), "*.jsonl"), ""}};
  recipe_.held_out = 0;
  tokenizer_ = ByteTokenizer(/*adds_bos=*/true);
  Write("a.jsonl", "{\"input_ids\": [1, 2, 3], \"loss_mask\": [0, 0, 1]}");
  const auto plan = BuildAndOpen();
  ASSERT_EQ(plan->document_count(), 1u);
  EXPECT_THAT(plan->document(0).tokens, ElementsAre(1, 2, 3));
  EXPECT_THAT(plan->document(0).loss_mask, ElementsAre(0, 0, 1));
}

TEST_F(BuildPlanTest, TheSameInputsGiveTheSameBytesWhereverTheyLie) {
  WriteCorpus(40);
  const Digest first = BuildAndOpen()->digest();
  EXPECT_EQ(BuildAndOpen()->digest(), first);
  const TempFolder elsewhere = *TempFolder::Create();
  const std::vector<std::string> names = *ListFolder(folder_.path());
  for (const std::string& name : names) {
    if (name == "plans") continue;
    SH_CHECK_OK(WriteFileAtomically(JoinPath(elsewhere.path(), name),
                                    *ReadFile(JoinPath(folder_.path(), name))));
  }
  recipe_.sources[0].path = JoinPath(elsewhere.path(), "*.txt");
  EXPECT_EQ(BuildAndOpen()->digest(), first);
  Write("f0.txt", "changed");
  recipe_.sources[0].path = JoinPath(folder_.path(), "*.txt");
  EXPECT_NE(BuildAndOpen()->digest(), first);
}

TEST_F(BuildPlanTest, NoSourceIsOnBothSides) {
  WriteCorpus(60);
  const auto plan = BuildAndOpen();
  EXPECT_GT(plan->held_out_rows(), 0u);
  std::map<std::string, std::set<bool>>
      sides;  // by the source's number, which its first piece shows
  for (uint32_t i = 0; i < plan->document_count(); ++i) {
    const PlanDocument document = plan->document(i);
    const PlanChunk chunk = plan->chunk(document.chunk);
    EXPECT_TRUE(chunk.begin <= i && i < chunk.end);
    sides[Text(document)].insert(chunk.held_out);
  }
  for (const auto& [text, side] : sides) {
    if (text.substr(0, 4) == "text") {
      EXPECT_EQ(side.size(), 1u) << text;
    }
  }
}

TEST_F(BuildPlanTest, SaysSoWhenNothingCanBeHeldOutOrSomethingWasDropped) {
  Write("a.txt", "only one source");
  Write("b.txt", "");
  const auto plan = BuildAndOpen();
  EXPECT_EQ(plan->held_out_rows(), 0u);
  EXPECT_THAT(notes_,
              ElementsAre(HasSubstr("1 source(s) are empty"), HasSubstr("Nothing is held out")));
}

TEST_F(BuildPlanTest, DuplicatesShareAKeyAndAreReportedWhenHeldOut) {
  recipe_.sources = {{JoinPath(folder_.path(), "*.jsonl"), ""}};
  recipe_.held_out = 1e-9;  // exactly one
  // Two sources that differ, with a piece in common.
  Write("a.jsonl", "{\"text\": \"0123456789abcdefX\"}\n{\"text\": \"0123456789abcdefYY\"}\n");
  tokenizer_ = ByteTokenizer(/*adds_bos=*/false, /*has_eos=*/false);
  recipe_.max_tokens = 15;
  const auto plan = BuildAndOpen();
  std::map<Digest, int> keys;
  for (uint32_t i = 0; i < plan->document_count(); ++i) ++keys[plan->document(i).key];
  EXPECT_EQ(keys.size(), 3u);
  EXPECT_EQ(plan->document_count(), 4u);
  EXPECT_THAT(notes_, ElementsAre(HasSubstr("1 held-out document(s) stand word for word")));
}

TEST_F(BuildPlanTest, RefusesAnEmptyDatasetAndALongDocumentByName) {
  Write("a.txt", "");
  EXPECT_THAT(std::string(Build().status().message()), HasSubstr("nothing to train on"));
  Write("a.txt", "0123456789abcdef");
  recipe_.when_longer = DatasetRecipe::WhenLonger::kRefuse;
  EXPECT_THAT(std::string(Build().status().message()), HasSubstr("a.txt: 17 tokens"));
  recipe_.sources[0].path = JoinPath(folder_.path(), "*.none");
  EXPECT_EQ(Build().status().code(), absl::StatusCode::kNotFound);
  // Nothing half-written stays behind.
  EXPECT_TRUE(ListFolder(JoinPath(folder_.path(), "plans"))->empty());
}

TEST_F(BuildPlanTest, InputsDigestChangesWithAnyInput) {
  WriteCorpus(3);
  const auto files = *FindSources(recipe_.sources);
  const Digest base = PlanInputsDigest(files, recipe_, tokenizer_.Fingerprint(), 0);
  EXPECT_EQ(PlanInputsDigest(files, recipe_, tokenizer_.Fingerprint(), 0), base);
  EXPECT_NE(PlanInputsDigest(files, recipe_, tokenizer_.Fingerprint(), 1), base);
  DatasetRecipe other = recipe_;
  other.held_out += 1e-12;
  EXPECT_NE(PlanInputsDigest(files, other, tokenizer_.Fingerprint(), 0), base);
  auto touched = files;
  touched[1].changed_ns += 1;
  EXPECT_NE(PlanInputsDigest(touched, recipe_, tokenizer_.Fingerprint(), 0), base);
}

TEST_F(BuildPlanTest, EpochOrderReadsEachTrainingDocumentOnceWindowByWindow) {
  WriteCorpus(200);
  const auto plan = BuildAndOpen();
  ASSERT_GT(plan->training_chunk_count(), 12u);
  const std::vector<uint32_t> order = EpochOrder(*plan, 7, 0);
  EXPECT_EQ(EpochOrder(*plan, 7, 0), order);
  EXPECT_NE(EpochOrder(*plan, 7, 1), order);
  EXPECT_NE(EpochOrder(*plan, 8, 0), order);
  EXPECT_EQ(order.size(), plan->chunk(plan->training_chunk_count() - 1).end);
  EXPECT_EQ(std::set<uint32_t>(order.begin(), order.end()).size(), order.size());
  // After k windows of chunks are complete, at most 3 (k + 1) chunks were touched.
  std::set<uint32_t> touched;
  std::map<uint32_t, uint32_t> left;
  for (uint32_t c = 0; c < plan->training_chunk_count(); ++c)
    left[c] = plan->chunk(c).end - plan->chunk(c).begin;
  uint32_t complete = 0;
  for (const uint32_t index : order) {
    const uint32_t chunk = plan->document(index).chunk;
    touched.insert(chunk);
    EXPECT_LE(touched.size(), complete / 3 * 3 + 3);
    if (--left[chunk] == 0) ++complete;
  }
}

}  // namespace
}  // namespace stillhouse

#include "recipe/recipe.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/file.h"

namespace stillhouse {
namespace {

std::string Sample() { return *ReadFile(SH_TEST_SOURCE_DIR "/tests/recipe/data/sample.yaml"); }

Recipe Parsed(const std::string& text, const std::string& path = "/data/r.yaml") {
  auto recipe = ParseRecipe(text, path);
  EXPECT_TRUE(recipe.ok()) << recipe.status();
  return recipe.ok() ? *recipe : Recipe();
}

TEST(RecipeTest, SampleParsesToWhatItSays) {
  const Recipe recipe = Parsed(Sample());
  EXPECT_EQ(recipe.path, "/data/r.yaml");
  EXPECT_EQ(recipe.text, Sample());
  EXPECT_EQ(recipe.name, "handbook");
  EXPECT_EQ(recipe.teacher.model, "/data/SmolLM2-135M-Instruct.Q4_1.gguf");
  EXPECT_EQ(recipe.teacher.written, "SmolLM2-135M-Instruct.Q4_1.gguf");
  EXPECT_EQ(recipe.teacher.dtype, "bf16");
  ASSERT_EQ(recipe.dataset.sources.size(), 1u);
  EXPECT_EQ(recipe.dataset.sources[0].path, "/data/corpus/*.txt");
  EXPECT_EQ(recipe.dataset.sources[0].domain, "docs");
  EXPECT_EQ(recipe.dataset.max_tokens, 512);
  EXPECT_EQ(recipe.dataset.when_longer, DatasetRecipe::WhenLonger::kSplit);
  EXPECT_EQ(recipe.dataset.held_out, 0.05);
  EXPECT_EQ(recipe.dataset.shuffle_window, 8);
  EXPECT_EQ(recipe.dataset.chunk_tokens, 16384);
  EXPECT_EQ(recipe.capture.sampled_draws, 50);
  EXPECT_FALSE(recipe.capture.hidden_last);
  EXPECT_EQ(recipe.cache_directory, "/data/cache");
  EXPECT_EQ(recipe.output, "/data/runs");
  ASSERT_EQ(recipe.students.size(), 1u);
}

TEST(RecipeTest, StudentOfTheSampleParsesToWhatItSays) {
  const StudentRecipe student = Parsed(Sample()).students.at(0);
  EXPECT_EQ(student.name, "half");
  EXPECT_EQ(student.init.from, InitRecipe::From::kTeacher);
  EXPECT_TRUE(student.init.layers.empty());
  EXPECT_EQ(student.init.keep, 15);
  EXPECT_EQ(student.ranks, 1);
  EXPECT_EQ(student.dtype, "bf16");
  EXPECT_EQ(student.batch_tokens, 2048);
  EXPECT_EQ(student.micro_batch, 1024);
  EXPECT_TRUE(student.packing);
  ASSERT_EQ(student.losses.size(), 2u);
  EXPECT_EQ(student.losses[0].kind, LossRecipe::Kind::kKl);
  EXPECT_EQ(student.losses[0].targets, LossRecipe::Targets::kSampled);
  EXPECT_EQ(student.losses[0].temperature, 1.0);
  EXPECT_EQ(student.losses[0].weight, 0.9);
  EXPECT_EQ(student.losses[1].kind, LossRecipe::Kind::kCrossEntropy);
  EXPECT_EQ(student.losses[1].weight, 0.1);
  EXPECT_EQ(student.optimizer.lr, 5e-4);
  EXPECT_EQ(student.optimizer.beta1, 0.9);
  EXPECT_EQ(student.optimizer.beta2, 0.95);
  EXPECT_EQ(student.optimizer.weight_decay, 0.01);
  EXPECT_EQ(student.optimizer.warmup, 0.1);
  EXPECT_EQ(student.optimizer.schedule, OptimizerRecipe::Schedule::kCosine);
  EXPECT_EQ(student.optimizer.clip, 1.0);
  EXPECT_EQ(student.steps, 40);
  EXPECT_EQ(student.seed, 7u);
  EXPECT_EQ(student.evaluate_every, 20);
  EXPECT_EQ(student.early_stop, 3);
  EXPECT_EQ(student.checkpoint_every, 20);
  EXPECT_EQ(student.checkpoint_keep, 2);
}

constexpr char kShort[] = R"(
name: short
teacher: /models/teacher.gguf
dataset: {sources: ../text.txt}
capture: {logits: sampled, hidden: {last: true}}
cache: /big/cache/
output: ./out/../out
students:
  - name: a
    init: scratch
    batch: 600
    losses: kl
    optimizer: adamw
    steps: 5
    evaluate: 2
    checkpoint: 3
  - name: b
    init: {from: teacher, layers: [0, 3, 29]}
    losses: [{kl: hidden_last}, cross_entropy]
    steps: 5
    seed: 18446744073709551615
)";

TEST(RecipeTest, ACacheMayBeBounded) {
  EXPECT_EQ(Parsed(kShort, "/data/sub/r.yaml").cache.bytes_max, 0u);
  std::string text = kShort;
  const std::string plain = "cache: /big/cache/";
  const size_t at = text.find(plain);
  ASSERT_NE(at, std::string::npos);
  text.replace(at, plain.size(),
               "cache: {directory: c, bytes_max: 5000000000, retention: until_read}");
  const Recipe recipe = Parsed(text, "/data/sub/r.yaml");
  EXPECT_EQ(recipe.cache.bytes_max, 5'000'000'000u);
  EXPECT_EQ(recipe.cache.retention, CacheRecipe::Retention::kUntilRead);
  EXPECT_EQ(recipe.cache_directory, "/data/sub/c");
}

TEST(RecipeTest, SeveralLogitsAndInnerLayersMayBeCaptured) {
  std::string text = kShort;
  const std::string plain = "logits: sampled, hidden: {last: true}";
  text.replace(text.find(plain), plain.size(),
               "logits: [sampled, {method: topk, k: 32}, {method: topp, p: 0.95, k_max: 100}, "
               "topk], hidden: {last: true, layers: [3, 1], dtype: int8}");
  const CaptureRecipe capture = Parsed(text, "/data/sub/r.yaml").capture;
  EXPECT_EQ(capture.sampled_draws, 50);
  ASSERT_EQ(capture.top.size(), 3u);
  EXPECT_EQ(capture.top[0].k, 32);
  EXPECT_EQ(capture.top[0].p_millionths, 0);
  EXPECT_EQ(capture.top[1].k, 100);
  EXPECT_EQ(capture.top[1].p_millionths, 950'000);
  EXPECT_EQ(capture.top[2].k, 64);
  EXPECT_TRUE(capture.hidden_last);
  EXPECT_EQ(capture.hidden_layers, (std::vector<int64_t>{3, 1}));
  EXPECT_TRUE(capture.layers_int8);
}

TEST(RecipeTest, ScalarFormsStandForMaps) {
  const Recipe recipe = Parsed(kShort, "/data/sub/r.yaml");
  EXPECT_EQ(recipe.teacher.model, "/models/teacher.gguf");
  EXPECT_EQ(recipe.dataset.sources.at(0).path, "/data/text.txt");
  EXPECT_EQ(recipe.dataset.sources.at(0).domain, "");
  EXPECT_EQ(recipe.capture.sampled_draws, 50);
  EXPECT_TRUE(recipe.capture.hidden_last);
  EXPECT_EQ(recipe.cache_directory, "/big/cache");
  EXPECT_EQ(recipe.output, "/data/sub/out");
  const StudentRecipe& a = recipe.students.at(0);
  EXPECT_EQ(a.init.from, InitRecipe::From::kScratch);
  EXPECT_EQ(a.batch_tokens, 600);
  EXPECT_EQ(a.micro_batch, 600) << "never more than a step";
  EXPECT_EQ(a.losses.at(0).kind, LossRecipe::Kind::kKl);
  EXPECT_EQ(a.evaluate_every, 2);
  EXPECT_EQ(a.checkpoint_every, 3);
  const StudentRecipe& b = recipe.students.at(1);
  EXPECT_EQ(b.init.layers, (std::vector<int64_t>{0, 3, 29}));
  EXPECT_EQ(b.micro_batch, 1024);
  EXPECT_EQ(b.losses.at(0).targets, LossRecipe::Targets::kHiddenLast);
  EXPECT_EQ(b.losses.at(1).kind, LossRecipe::Kind::kCrossEntropy);
  EXPECT_EQ(b.seed, 18446744073709551615ull);
}

TEST(RecipeTest, AliasesAreWrittenOut) {
  const std::string text =
      absl::StrReplaceAll(kShort, {{"teacher: /models", "teacher: &t /models"},
                                   {"losses: kl\n", "losses: &l [kl]\n"},
                                   {"losses: [{kl: hidden_last}, cross_entropy]", "losses: *l"}});
  const Recipe recipe = Parsed(text);
  EXPECT_EQ(recipe.students.at(1).losses.size(), 1u);
}

TEST(RecipeTest, PathOfTheRecipeMayBeRelative) {
  const Recipe recipe = Parsed(kShort, "r.yaml");
  EXPECT_EQ(recipe.output, std::filesystem::current_path().string() + "/out");
}

TEST(RecipeTest, AFolderWhoseNameIsNoUtf8IsRefusedByName) {
  const std::string text = *ReadFile(SH_TEST_SOURCE_DIR "/tests/recipe/data/sample.yaml");
  EXPECT_TRUE(ParseRecipe(text, "/caf\xc3\xa9/r.yaml").ok());
  const absl::Status status = ParseRecipe(text, "/caf\xe9/r.yaml").status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_EQ(status.message(),
            "\"/caf\\351/r.yaml\": the path is not UTF-8: rename the file or folder");
}

TEST(RecipeTest, ReadRecipeNamesTheFile) {
  auto folder = TempFolder::Create();
  ASSERT_TRUE(folder.ok());
  const std::string path = folder->path() + "/r.yaml";
  EXPECT_TRUE(absl::IsNotFound(ReadRecipe(path).status()));
  ASSERT_TRUE(WriteFileAtomically(path, Sample()).ok());
  EXPECT_EQ(ReadRecipe(path)->cache_directory, folder->path() + "/cache");
  ASSERT_TRUE(WriteFileAtomically(path, "nme: x\n").ok());
  EXPECT_EQ(ReadRecipe(path).status().message(),
            absl::StrCat(path, ":1:1: nme: unknown key; did you mean \"name\"?"));
}

RunInputs Inputs() { return {Sha256Of("plan"), Sha256Of("teacher")}; }

TEST(RunIdentityTest, NameAndFolder) {
  const Recipe recipe = Parsed(Sample());
  const StudentRecipe& student = recipe.students[0];
  EXPECT_EQ(RunName(recipe, student), "run/handbook/half");
  EXPECT_EQ(RunFolder(recipe, student, Inputs()),
            "/data/runs/.runs/half-" + RunHash(recipe, student, Inputs()).ShortHex());
  // Golden: a change here gives every user's runs new folders.
  EXPECT_EQ(RunHash(recipe, student, Inputs()).ShortHex(), "7628d02f");
}

TEST(RunIdentityTest, PlaceSpellingAndTargetsOfResultsDoNotMatter) {
  const Recipe recipe = Parsed(Sample());
  const Digest hash = RunHash(recipe, recipe.students[0], Inputs());
  const Recipe moved = Parsed(Sample(), "/elsewhere/r2.yaml");
  EXPECT_EQ(RunHash(moved, moved.students[0], Inputs()), hash);
  for (const auto& [from, to] : std::vector<std::pair<std::string, std::string>>{
           {"held_out: 0.05", "held_out: 5.0e-2"},
           {"directory: cache", "directory: other"},
           {"output: runs", "output: elsewhere"},
           {"teacher:  {model: SmolLM2-135M-Instruct.Q4_1.gguf, dtype: bf16}",
            "teacher: ./SmolLM2-135M-Instruct.Q4_1.gguf"},
           {"    ranks: 1\n", ""}}) {
    const std::string text = absl::StrReplaceAll(Sample(), {{from, to}});
    ASSERT_NE(text, Sample()) << from;
    const Recipe other = Parsed(text);
    EXPECT_EQ(RunHash(other, other.students[0], Inputs()), hash) << to;
  }
}

TEST(RunIdentityTest, EverythingElseMatters) {
  const std::vector<std::pair<std::string, std::string>> changes = {
      {"name: handbook", "name: other"},
      {"Q4_1.gguf", "Q8_0.gguf"},
      {"gguf, dtype: bf16", "gguf, dtype: fp32"},
      {"corpus/*.txt", "corpus/*.md"},
      {"domain: docs", "domain: other"},
      {"max_tokens: 512", "max_tokens: 511"},
      {"when_longer: split", "when_longer: refuse"},
      {"held_out: 0.05", "held_out: 0.06"},
      {"shuffle_window: 8", "shuffle_window: 9"},
      {"shuffle_window: 8", "chunk_tokens: 8000"},
      {"draws: 50", "draws: 25"},
      {"cache:    {", "  hidden: {last: true}\ncache:    {"},
      {"draws: 50}", "draws: 50}\n  hidden: {layers: [1]}"},
      {"draws: 50}", "draws: 50}\n  hidden: {layers: [2]}"},
      {"draws: 50}", "draws: 50}\n  hidden: {layers: [1], dtype: int8}"},
      {"logits: {method: sampled, draws: 50}", "logits: [sampled, topk]"},
      {"logits: {method: sampled, draws: 50}", "logits: [sampled, {method: topk, k: 63}]"},
      {"logits: {method: sampled, draws: 50}", "logits: [sampled, {method: topp, p: 0.9}]"},
      {"name: half", "name: third"},
      {"from: teacher", "from: scratch"},
      {"keep: 15", "keep: 16"},
      {"{keep: 15, by: block_influence}", "[1, 2]"},
      {"    dtype: bf16", "    dtype: fp32"},
      {"tokens: 2048", "tokens: 2047"},
      {"micro_batch: 1024", "micro_batch: 1023"},
      {"packing: true", "packing: false"},
      {"weight: 0.9", "weight: 0.8"},
      {"cross_entropy: {}", "kl: {}"},
      {"lr: 5e-4", "lr: 6e-4"},
      {"[0.9, 0.95]", "[0.8, 0.95]"},
      {"[0.9, 0.95]", "[0.9, 0.9]"},
      {"clip: 1.0", "clip: 1.0, epsilon: 1e-7"},
      {"weight_decay: 0.01", "weight_decay: 0.02"},
      {"warmup: 0.1", "warmup: 0.2"},
      {"schedule: cosine", "schedule: constant"},
      {"clip: 1.0", "clip: 2.0"},
      {"steps: 40", "steps: 41"},
      {"seed: 7", "seed: 8"},
      {"every: 20, early", "every: 10, early"},
      {"early_stop: 3", "early_stop: 4"},
      {"every: 20, keep", "every: 10, keep"},
      {"keep: 2}", "keep: 3}"},
  };
  const Recipe recipe = Parsed(Sample());
  std::set<Digest> seen = {RunHash(recipe, recipe.students[0], Inputs())};
  for (const auto& [from, to] : changes) {
    std::string text = absl::StrReplaceAll(Sample(), {{from, to}});
    if (to == "from: scratch") text = absl::StrReplaceAll(text, {{", by: block_influence", ""}});
    ASSERT_NE(text, Sample()) << from;
    const Recipe other = Parsed(text);
    EXPECT_TRUE(seen.insert(RunHash(other, other.students.at(0), Inputs())).second)
        << from << " -> " << to;
  }
}

TEST(RunIdentityTest, WhatTheTextsAndTheTeacherHoldMatters) {
  const Recipe recipe = Parsed(Sample());
  const StudentRecipe& student = recipe.students[0];
  RunInputs texts = Inputs(), teacher = Inputs();
  texts.plan = Sha256Of("another plan");
  teacher.teacher = Sha256Of("another teacher");
  const RunInputs swapped = {Inputs().teacher, Inputs().plan};
  const std::set<std::string> folders = {
      RunFolder(recipe, student, Inputs()), RunFolder(recipe, student, texts),
      RunFolder(recipe, student, teacher), RunFolder(recipe, student, swapped)};
  EXPECT_EQ(folders.size(), 4u);
}

}  // namespace
}  // namespace stillhouse

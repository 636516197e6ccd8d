// What a recipe may not say: each row changes the sample and states the one line that comes back.
#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/file.h"
#include "recipe/recipe.h"

namespace stillhouse {
namespace {

struct Refusal {
  std::string from, to;  // in the sample
  std::string expected;  // LINE:COLUMN: key: what
};

std::string Sample() { return *ReadFile(SH_TEST_SOURCE_DIR "/tests/recipe/data/sample.yaml"); }

void ExpectRefused(const std::string& text, const std::string& expected) {
  const auto recipe = ParseRecipe(text, "r.yaml");
  ASSERT_TRUE(absl::IsInvalidArgument(recipe.status())) << recipe.status() << "\n" << expected;
  EXPECT_EQ(std::string(recipe.status().message()), absl::StrCat("r.yaml:", expected));
}

void ExpectRefused(const std::vector<Refusal>& refusals) {
  for (const Refusal& refusal : refusals) {
    const std::string sample = Sample();
    const size_t at = sample.find(refusal.from);
    ASSERT_NE(at, std::string::npos) << refusal.from;
    std::string text = sample;
    text.replace(at, refusal.from.size(), refusal.to);
    ExpectRefused(text, refusal.expected);
  }
}

TEST(RefusalTest, UnknownKeysWithTheNearestKnownOne) {
  ExpectRefused(std::vector<Refusal>{
      {"max_tokens: 512", "max_token: 512",
       "5:3: dataset.max_token: unknown key; did you mean \"max_tokens\"?"},
      {"name: handbook", "Name: handbook", "1:1: Name: unknown key; did you mean \"name\"?"},
      {"when_longer", "when-longer",
       "6:3: dataset.when-longer: unknown key; did you mean \"when_longer\"?"},
      {"{model:", "{modle:", "2:12: teacher.modle: unknown key; did you mean \"model\"?"},
      {"early_stop", "earlystop",
       "25:27: students[0].evaluate.earlystop: unknown key; did you mean \"early_stop\"?"},
      {"output: runs", "output: runs\nfrobnicate: 1", "13:1: frobnicate: unknown key"},
      {"temperature: 1.0", "tau: 1.0", "20:33: students[0].losses[0].kl.tau: unknown key"},
      {"keep: 15, by", "top: 15, by", "15:37: students[0].init.layers.top: unknown key"},
      {"lr: 5e-4", "\"l\\nr\": 5e-4",
       "22:30: students[0].optimizer.l\\nr: unknown key; did you mean \"lr\"?"},
      {"output: runs", absl::StrCat("output: runs\n", std::string(500, 'k'), ": 1"),
       absl::StrCat("13:1: ", std::string(60, 'k'), "...: unknown key")},
      {"output: runs", "<<: {a: 1}\noutput: runs", "12:1: <<: unknown key"},
  });
}

TEST(RefusalTest, MissingKeys) {
  ExpectRefused(std::vector<Refusal>{
      {"name: handbook\n", "", "1:1: name: is required"},
      {"{model: SmolLM2-135M-Instruct.Q4_1.gguf, dtype: bf16}", "{dtype: bf16}",
       "2:11: teacher.model: is required"},
      {"{directory: cache}", "{}", "11:11: cache.directory: is required"},
      {"output: runs\n", "", "1:1: output: is required"},
      {"    steps: 40\n", "", "14:5: students[0].steps: is required"},
      {"{method: sampled, draws: 50}", "{draws: 50}", "10:11: capture.logits.method: is required"},
      {"{cross_entropy: {}, weight: 0.1}", "{weight: 0.1}",
       "21:9: students[0].losses[1]: expected kl or cross_entropy"},
      {"{path: \"corpus/*.txt\", domain: docs}", "{domain: docs}",
       "4:13: dataset.sources[0].path: is required"},
  });
}

TEST(RefusalTest, MistypedValues) {
  ExpectRefused(std::vector<Refusal>{
      {"max_tokens: 512", "max_tokens: many",
       "5:15: dataset.max_tokens: expected a whole number, got \"many\""},
      {"max_tokens: 512", "max_tokens: \"512\"",
       "5:15: dataset.max_tokens: expected a whole number, got the text \"512\""},
      {"max_tokens: 512", "max_tokens: 5.5",
       "5:15: dataset.max_tokens: expected a whole number, got \"5.5\""},
      {"max_tokens: 512", "max_tokens: 0x200",
       "5:15: dataset.max_tokens: expected a whole number, got \"0x200\""},
      {"max_tokens: 512", "max_tokens: 99999999999999999999",
       "5:15: dataset.max_tokens: expected a whole number, got \"99999999999999999999\""},
      {"max_tokens: 512",
       "max_tokens:", "5:3: dataset.max_tokens: expected a whole number, got nothing"},
      {"max_tokens: 512", "max_tokens: [512]",
       "5:15: dataset.max_tokens: expected a whole number, got a list"},
      {"held_out: 0.05", "held_out: nan", "7:13: dataset.held_out: expected a number, got \"nan\""},
      {"held_out: 0.05", "held_out: 1e999",
       "7:13: dataset.held_out: expected a number, got \"1e999\""},
      {"held_out: 0.05", "held_out: {}", "7:13: dataset.held_out: expected a number, got a map"},
      {"packing: true", "packing: yes",
       "18:55: students[0].batch.packing: expected true or false, got \"yes\""},
      {"packing: true", "packing: \"true\"",
       "18:55: students[0].batch.packing: expected true or false, got the text \"true\""},
      {"name: handbook", "name: [a]",
       "1:7: name: expected a name of a-z, 0-9, _ and -, at most 64 long, got a list"},
      {"name: handbook", "name: Hand Book",
       "1:7: name: expected a name of a-z, 0-9, _ and -, at most 64 long, got \"Hand Book\""},
      {"name: handbook", "name: ../up",
       "1:7: name: expected a name of a-z, 0-9, _ and -, at most 64 long, got \"../up\""},
      {"name: half", "name: -half",
       "14:11: students[0].name: expected a name that begins with a letter or digit, got "
       "\"-half\""},
      {"output: runs", "output: {}", "12:9: output: expected text, got a map"},
      {"output: runs", "output: \"\"", "12:9: output: expected text, got the text \"\""},
      {"output: runs", "output: ~/runs", "12:9: output: ~ is not expanded: write the whole path"},
      {"seed: 7", "seed: -7",
       "24:11: students[0].seed: expected a whole number from 0 to 2^64 - 1, got \"-7\""},
      {"seed: 7", "seed: 18446744073709551616",
       "24:11: students[0].seed: expected a whole number from 0 to 2^64 - 1, got "
       "\"18446744073709551616\""},
      {"[0.9, 0.95]", "[0.9]",
       "22:47: students[0].optimizer.betas: expected a list of 2 numbers, got a list"},
      {"[0.9, 0.95]", "[0.9, 1.0]",
       "22:53: students[0].optimizer.betas[1]: expected a number at least 0 and below 1, got "
       "\"1.0\""},
      {"{name: adamw, lr: 5e-4", "[{lr: 5e-4", "23:5: yaml: end of sequence flow not found"},
  });
}

TEST(RefusalTest, StructureOfTheWrongKind) {
  ExpectRefused("", "1:1: yaml: there is nothing in it");
  ExpectRefused("# only a comment\n", "1:1: yaml: there is nothing in it");
  ExpectRefused("just text\n", "1:1: recipe: expected a map of keys, got \"just text\"");
  ExpectRefused("[1, 2]\n", "1:1: recipe: expected a map of keys, got a list");
  ExpectRefused(std::vector<Refusal>{
      {"[{path: \"corpus/*.txt\", domain: docs}]", "[]",
       "4:12: dataset.sources: expected a list of at least one, got a list"},
      {"[{path: \"corpus/*.txt\", domain: docs}]", "[[x]]",
       "4:13: dataset.sources[0]: expected a map of keys, got a list"},
      {"students:\n  -", "students:\n   ",
       "14:5: students: expected a list of at least one, got a map"},
      {"{from: teacher, layers: {keep: 15, by: block_influence}}", "{from: teacher, layers: 15}",
       "15:36: students[0].init.layers: expected a map of keys, got \"15\""},
      {"{keep: 15, by: block_influence}", "[]",
       "15:36: students[0].init.layers: expected a list of at least one, got a list"},
      {"{keep: 15, by: block_influence}", "[1, x]",
       "15:40: students[0].init.layers[1]: expected a whole number from 0 to 999, got \"x\""},
      {"cross_entropy: {}", "cross_entropy: 1",
       "21:25: students[0].losses[1].cross_entropy: expected a map of keys, got \"1\""},
      {"{cross_entropy: {}, weight: 0.1}", "ce", "21:9: students[0].losses[1].ce: unknown key"},
      {"{cross_entropy: {}, weight: 0.1}", "{cross_entropy: {}, kl: {}}",
       "21:9: students[0].losses[1]: kl and cross_entropy are two losses: one item each"},
  });
}

TEST(RefusalTest, ValuesOutOfRange) {
  ExpectRefused(std::vector<Refusal>{
      {"max_tokens: 512", "max_tokens: 1",
       "5:15: dataset.max_tokens: expected a whole number from 2 to 1000000, got \"1\""},
      {"held_out: 0.05", "held_out: 0",
       "7:13: dataset.held_out: expected a number above 0 and at most 0.5, got \"0\""},
      {"held_out: 0.05", "held_out: 0.6",
       "7:13: dataset.held_out: expected a number above 0 and at most 0.5, got \"0.6\""},
      {"shuffle_window: 8", "shuffle_window: 0",
       "8:19: dataset.shuffle_window: expected a whole number from 1 to 1000000, got \"0\""},
      {"draws: 50", "draws: 0",
       "10:36: capture.logits.draws: expected a whole number from 1 to 1000, got \"0\""},
      {"keep: 15", "keep: 0",
       "15:43: students[0].init.layers.keep: expected a whole number from 1 to 1000, got \"0\""},
      {"keep: 15", "keep: -3",
       "15:43: students[0].init.layers.keep: expected a whole number from 1 to 1000, got \"-3\""},
      {"{keep: 15, by: block_influence}", "[-1]",
       "15:37: students[0].init.layers[0]: expected a whole number from 0 to 999, got \"-1\""},
      {"tokens: 2048", "tokens: 0",
       "18:21: students[0].batch.tokens: expected a whole number from 1 to 1073741824, got \"0\""},
      {"weight: 0.9", "weight: 0",
       "20:60: students[0].losses[0].weight: expected a number above 0, got \"0\""},
      {"temperature: 1.0", "temperature: 0",
       "20:46: students[0].losses[0].kl.temperature: expected a number above 0 and at most 1000, "
       "got \"0\""},
      {"lr: 5e-4", "lr: -5e-4",
       "22:34: students[0].optimizer.lr: expected a number above 0 and at most 1, got \"-5e-4\""},
      {"warmup: 0.1", "warmup: 1.5",
       "22:88: students[0].optimizer.warmup: expected a number at least 0 and at most 1, got "
       "\"1.5\""},
      {"clip: 1.0", "clip: -1",
       "22:117: students[0].optimizer.clip: expected a number at least 0, got \"-1\""},
      {"steps: 40", "steps: 0",
       "23:12: students[0].steps: expected a whole number from 1 to 1000000000, got \"0\""},
      {"keep: 2}", "keep: 0}",
       "26:35: students[0].checkpoint.keep: expected a whole number from 1 to 1000000, got \"0\""},
      {"gguf, dtype: bf16", "gguf, dtype: fp16",
       "2:59: teacher.dtype: expected bf16 or fp32, got \"fp16\""},
      {"name: adamw", "name: sgd",
       "22:23: students[0].optimizer.name: expected adamw, got \"sgd\""},
      {"when_longer: split", "when_longer: cut",
       "6:16: dataset.when_longer: expected split or refuse, got \"cut\""},
      {"by: block_influence", "by: luck",
       "15:51: students[0].init.layers.by: expected block_influence, got \"luck\""},
  });
}

TEST(RefusalTest, ACacheBesideTheFoldersThatMayBeDeletedIsNone) {
  for (const std::string beside : {"runs/.stillhouse-cache", "runs/cache", ".stillhouse"}) {
    const auto recipe = ParseRecipe(
        absl::StrReplaceAll(Sample(), {{"directory: cache", "directory: " + beside}}), "r.yaml");
    EXPECT_TRUE(recipe.ok()) << recipe.status();
  }
}

TEST(RefusalTest, NumbersWithALeadingZero) {
  ExpectRefused(std::vector<Refusal>{
      {"steps: 40", "steps: 040",
       "23:12: students[0].steps: expected a whole number, got \"040\" with a leading zero"},
      {"{keep: 15, by: block_influence}", "[3, 05]",
       "15:40: students[0].init.layers[1]: expected a whole number from 0 to 999, got \"05\" with "
       "a "
       "leading zero"},
      {"seed: 7", "seed: 007",
       "24:11: students[0].seed: expected a whole number from 0 to 2^64 - 1, got \"007\" with a "
       "leading zero"},
      {"held_out: 0.05", "held_out: 00.05",
       "7:13: dataset.held_out: expected a number, got \"00.05\" with a leading zero"},
  });
}

TEST(RefusalTest, MoreRanksThanTokensInAStep) {
  ExpectRefused(std::vector<Refusal>{
      {"ranks: 1", "ranks: 2049",
       "16:12: students[0].ranks: more than batch.tokens, which is 2048: each step would leave "
       "some "
       "of them without a token"},
  });
  const absl::StatusOr<Recipe> recipe =
      ParseRecipe(absl::StrReplaceAll(Sample(), {{"ranks: 1", "ranks: 8"}}), "r.yaml");
  ASSERT_TRUE(recipe.ok()) << recipe.status();
  EXPECT_EQ(recipe->students[0].ranks, 8);
}

TEST(RefusalTest, ControlCharactersInPaths) {
  ExpectRefused(std::vector<Refusal>{
      {"{directory: cache}", "{directory: \"c\\0d\"}",
       "11:23: cache.directory: a control character in a path"},
      {"{directory: cache}", "{directory: \"c\\e[31m\"}",
       "11:23: cache.directory: a control character in a path"},
  });
}

TEST(RefusalTest, KeysOfLaterVersionsByName) {
  ExpectRefused(std::vector<Refusal>{
      {"{directory: cache}", "{servers: [a, b]}",
       "11:12: cache.servers: cache servers started elsewhere: not in this version"},
      {"logits:", "attention: {layers: [1]}\n  logits:",
       "10:3: capture.attention: attention probabilities: not in this version"},
      {"dtype: bf16}", "endpoint: x}",
       "2:52: teacher.endpoint: a teacher behind an HTTP endpoint: not in this version"},
      {"targets: sampled", "targets: topp",
       "20:24: students[0].losses[0].kl.targets: top-p targets: not in this version"},
      {"temperature: 1.0", "temperature: {from: 4, to: 1}",
       "20:33: students[0].losses[0].kl.temperature: a temperature schedule: not in this version"},
      {"cross_entropy: {}", "jsd: {}",
       "21:10: students[0].losses[1].jsd: the Jensen-Shannon divergence as a loss: not in this "
       "version"},
      {"steps: 40", "stages: []\n    steps: 40",
       "23:5: students[0].stages: training in stages: not in this version"},
      {"{from: teacher,", "{folder: x,",
       "15:13: students[0].init.folder: starting from another model's folder: not in this version"},
  });
}

TEST(RefusalTest, Captures) {
  const std::string logits = "{method: sampled, draws: 50}";
  ExpectRefused(std::vector<Refusal>{
      {logits, "{method: topk, draws: 50}", "10:26: capture.logits.draws: unknown key"},
      {logits, "{method: topk, k: 0}",
       "10:29: capture.logits.k: expected a whole number from 1 to 65536, got \"0\""},
      {logits, "{method: topp, k_max: 9}", "10:11: capture.logits.p: is required"},
      {logits, "{method: topp, p: 1}",
       "10:29: capture.logits.p: expected a number at least 1e-06 and at most 0.999999, got \"1\""},
      {logits, "{method: topp, p: 0.12345678}",
       "10:29: capture.logits.p: has more than 6 digits behind the point"},
      {logits, "[sampled, {method: sampled, draws: 3}]",
       "10:30: capture.logits[1].method: sampled twice: draw once, as often as any student needs"},
      {logits, "[sampled, topk, {method: topk, k: 64}]",
       "10:11: capture.logits: the same top-k or top-p logits twice"},
      {"logits:", "hidden: {layers: [1, 2, 1]}\n  logits:",
       "10:27: capture.hidden.layers[2]: a layer twice"},
      {"logits:", "hidden: {last: true, dtype: int8}\n  logits:",
       "10:31: capture.hidden.dtype: is that of hidden.layers, of which there are none; last is "
       "always bf16"},
  });
}

TEST(RefusalTest, KeysThatDoNotFitTogether) {
  const std::string second = "\n  - {name: half, losses: cross_entropy, steps: 1}\n";
  ExpectRefused(std::vector<Refusal>{
      {"  logits: {method: sampled, draws: 50}", "  hidden: {last: true}",
       "20:24: students[0].losses[0].kl.targets: sampled needs sampled logits: write \"logits: "
       "{method: sampled, draws: 50}\" under capture"},
      {"targets: sampled", "targets: topk",
       "20:24: students[0].losses[0].kl.targets: topk needs the teacher's most likely ids: write "
       "\"logits: {method: topk, k: 64}\" under capture"},
      {"targets: sampled", "targets: hidden_last",
       "20:24: students[0].losses[0].kl.targets: hidden_last needs the teacher's last hidden "
       "state: "
       "write \"hidden: {last: true}\" under capture"},
      {"temperature: 1.0", "temperature: 2",
       "20:46: students[0].losses[0].kl.temperature: sampled targets hold the teacher at "
       "temperature "
       "1; at another one their draws are almost only noise: use 1.0, or targets: hidden_last"},
      {"tokens: 2048, micro_batch: 1024", "tokens: 500",
       "18:21: students[0].batch.tokens: a document of dataset.max_tokens has 511 rows and must "
       "fit: "
       "at least 511"},
      {"micro_batch: 1024", "micro_batch: 510",
       "18:40: students[0].batch.micro_batch: a document of dataset.max_tokens has 511 rows and "
       "must "
       "fit: at least 511"},
      {"micro_batch: 1024", "micro_batch: 2049",
       "18:40: students[0].batch.micro_batch: more than batch.tokens, which is 2048"},
      {"every: 20, early_stop: 3", "early_stop: 3",
       "25:28: students[0].evaluate.early_stop: needs evaluate.every: it counts evaluations"},
      {"{keep: 15, by: block_influence}", "[3, 5, 3]",
       "15:43: students[0].init.layers[2]: a layer twice"},
      {"from: teacher, layers: {keep: 15, by: block_influence}", "from: scratch, layers: [1]",
       "15:36: students[0].init.layers: which layers matters only with \"from: teacher\"; from "
       "scratch write \"layers: {keep: N}\""},
      {"from: teacher", "from: scratch",
       "15:51: students[0].init.layers.by: layers are chosen only with \"from: teacher\""},
      {"output: runs", "output: ./cache", "12:9: output: the same folder as cache.directory"},
      {"{directory: cache}", "{directory: runs/.stillhouse}",
       "11:23: cache.directory: inside .stillhouse of output, which may be deleted when a run has "
       "ended: use a folder outside"},
      {"{directory: cache}", "./runs/x/../.runs/cache/",
       "11:11: cache.directory: inside .runs of output, which may be deleted when a run has "
       "ended: use a folder outside"},
      {"{directory: cache}", "{directory: cache, retention: until_read}",
       "11:41: cache.retention: until_read makes room below cache.bytes_max, which is not set"},
      {"{directory: cache}", "{directory: cache, bytes_max: 5}",
       "11:41: cache.bytes_max: expected a whole number from 1048576 to 1152921504606846976, got "
       "\"5\""},
      {"{directory: cache}", "{directory: cache, retention: forever}",
       "11:41: cache.retention: expected keep or until_read, got \"forever\""},
      {"{directory: cache}", "{directory: cache, bytes_maximum: 5}",
       "11:30: cache.bytes_maximum: unknown key; did you mean \"bytes_max\"?"},
      {"shuffle_window: 8", "chunk_tokens: 500",
       "8:17: dataset.chunk_tokens: less than dataset.max_tokens, which is 512"},
      {"checkpoint: {every: 20, keep: 2}\n", "checkpoint: {every: 20, keep: 2}" + second,
       "27:12: students[1].name: a second student named half"},
  });
}

TEST(RefusalTest, FirstProblemInTheTextIsTheOneReported) {
  const std::string text =
      absl::StrReplaceAll(Sample(), {{"steps: 40", "steps: x"}, {"draws: 50", "draws: x"}});
  ExpectRefused(text, "10:36: capture.logits.draws: expected a whole number, got \"x\"");
}

TEST(RefusalTest, TooManyStudents) {
  std::string text = "name: x\nteacher: t\ndataset: {sources: s}\ncache: c\noutput: o\nstudents:\n";
  for (size_t i = 0; i < kStudentsMax + 1; ++i) {
    absl::StrAppend(&text, "- {name: s", i, ", losses: cross_entropy, steps: 1}\n");
  }
  ExpectRefused(text, absl::StrCat(7 + kStudentsMax, ":3: students[64]: more than 64 students"));
}

// Every single line, cut off anywhere or spoilt anywhere, is a recipe or a refusal of one line.
TEST(RefusalTest, DamagedRecipesNeverGetThrough) {
  const std::string sample = Sample();
  const auto check = [](const std::string& text) {
    const auto recipe = ParseRecipe(text, "r.yaml");
    if (recipe.ok()) return;
    const std::string message(recipe.status().message());
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_TRUE(absl::StartsWith(message, "r.yaml:")) << message;
    EXPECT_LT(message.size(), 500u);
  };
  for (size_t size = 0; size < sample.size(); size += 3) check(sample.substr(0, size));
  const std::string spoilers = "{}[]:,\"'&*!|>%@`-?#\n\t\xff \x01";
  for (size_t i = 0; i < sample.size(); i += 2) {
    std::string text = sample;
    text[i] = spoilers[i % spoilers.size()];
    check(text);
  }
}

}  // namespace
}  // namespace stillhouse

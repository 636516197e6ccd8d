#include "recipe/recipe.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <utility>
#include <variant>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/status.h"
#include "common/utf8.h"
#include "recipe/fields.h"
#include "recipe/recipe_rules.h"

namespace stillhouse {
namespace {

constexpr int64_t kTokensMax = 1'000'000;  // of one document
constexpr int64_t kRowsMax = 1 << 30;      // of one step or chunk
constexpr int64_t kStepsMax = 1'000'000'000;
constexpr int64_t kDrawsMax = 1000;
constexpr int64_t kTopDefault = 64, kTopIdsMax = 65'536;
constexpr double kTopPMin = 1e-6;  // p is stored in millionths
constexpr int64_t kLayersMax = 1000;
constexpr int64_t kWindowMax = 1'000'000;
constexpr int64_t kKeptMax = 1'000'000;
constexpr double kHeldOutMax = 0.5;
constexpr int64_t kCacheBytesMin = 1 << 20;
constexpr int64_t kCacheBytesMax = int64_t{1} << 60;
constexpr int64_t kMicroBatchDefault = 1024;

constexpr Fields::Range kAboveZero{.min = 0, .min_open = true};
constexpr Fields::Range kFromZero{.min = 0};
constexpr Fields::Range kShare{.min = 0, .max = 1};
constexpr Fields::Range kDecay{.min = 0, .max = 1, .max_open = true};

const Fields::Choices<std::string> kDtypes = {{"bf16", "bf16"}, {"fp32", "fp32"}};

class Reader {
 public:
  Reader(std::string folder, Report& report) : folder_(std::move(folder)), report_(report) {}

  void ReadTop(Fields& f, Recipe& recipe);

 private:
  void ReadTeacher(Fields& f, TeacherRecipe& teacher);
  void ReadDataset(Fields& f, DatasetRecipe& dataset);
  void ReadCapture(Fields& f, CaptureRecipe& capture);
  void ReadLogits(Fields& f, CaptureRecipe& capture);
  void ReadCache(Fields& f, Recipe& recipe);
  void ReadStudent(Fields& f, StudentRecipe& student);
  void ReadInit(Fields& f, InitRecipe& init);
  void ReadLayers(Fields& f, InitRecipe& init);
  void ReadBatch(Fields& f, StudentRecipe& student);
  void ReadLoss(const YamlNode& node, const std::string& path, StudentRecipe& student);
  void ReadKl(Fields& f, LossRecipe& loss);
  void ReadOptimizer(Fields& f, OptimizerRecipe& optimizer);
  // A path as text, made absolute.
  void ReadPath(Fields& f, absl::string_view key, std::string* out);

  const std::string folder_;  // absolute, of the recipe
  Report& report_;
};

void Reader::ReadPath(Fields& f, absl::string_view key, std::string* out) {
  std::string written;
  f.Text(key, Need::kRequired, &written);
  if (written.empty()) return;
  if (std::any_of(written.begin(), written.end(), absl::ascii_iscntrl)) {
    f.report().AddAt(f.PathOf(key), "a control character in a path");
    return;
  }
  if (written == "~" || absl::StartsWith(written, "~/")) {
    f.report().AddAt(f.PathOf(key), "~ is not expanded: write the whole path");
    return;
  }
  std::string path = std::filesystem::path(JoinPath(folder_, written)).lexically_normal().string();
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  *out = std::move(path);
}

void Reader::ReadTop(Fields& f, Recipe& recipe) {
  f.Name("name", Need::kRequired, &recipe.name);
  f.Map("teacher", Need::kRequired, "model", [&](Fields& g) { ReadTeacher(g, recipe.teacher); });
  f.Map("dataset", Need::kRequired, "", [&](Fields& g) { ReadDataset(g, recipe.dataset); });
  f.Map("capture", Need::kOptional, "", [&](Fields& g) { ReadCapture(g, recipe.capture); });
  f.Map("cache", Need::kRequired, "directory", [&](Fields& g) { ReadCache(g, recipe); });
  ReadPath(f, "output", &recipe.output);
  f.Later("site", "a site within the recipe");
  f.Later("priority", "priority classes");
  f.List("students", Need::kRequired, /*one_allowed=*/false,
         [&](const YamlNode& node, const std::string& path) {
           if (recipe.students.size() == kStudentsMax) {
             report_.Add({node.line, node.column, path,
                          absl::StrCat("more than ", kStudentsMax, " students")});
           }
           if (recipe.students.size() >= kStudentsMax) return;
           StudentRecipe student;
           ReadMap(node, path, "", report_, [&](Fields& g) { ReadStudent(g, student); });
           recipe.students.push_back(std::move(student));
         });
}

void Reader::ReadTeacher(Fields& f, TeacherRecipe& teacher) {
  ReadPath(f, "model", &teacher.model);
  if (!teacher.model.empty()) teacher.written = f.Find("model")->text;
  f.Choice("dtype", Need::kOptional, kDtypes, &teacher.dtype);
  f.Later("endpoint", "a teacher behind an HTTP endpoint");
  f.Later("revision", "revisions of a remote teacher");
  f.Later("label", "labels of a remote teacher");
  f.Later("tensor_parallel", "a teacher over several devices");
  f.Later("quantization", "quantising the teacher on loading");
}

void Reader::ReadDataset(Fields& f, DatasetRecipe& dataset) {
  using WhenLonger = DatasetRecipe::WhenLonger;
  f.List("sources", Need::kRequired, /*one_allowed=*/true,
         [&](const YamlNode& node, const std::string& path) {
           SourceRecipe source;
           ReadMap(node, path, "path", report_, [&](Fields& g) {
             ReadPath(g, "path", &source.path);
             g.Name("domain", Need::kOptional, &source.domain);
             g.Later("weight", "weights of sources");
             g.Later("format", "choosing the format of a source");
           });
           dataset.sources.push_back(std::move(source));
         });
  f.Integer("max_tokens", Need::kOptional, {2, kTokensMax}, &dataset.max_tokens);
  f.Choice<WhenLonger>("when_longer", Need::kOptional,
                       {{"split", WhenLonger::kSplit}, {"refuse", WhenLonger::kRefuse}},
                       &dataset.when_longer);
  // Every run is evaluated on held-out documents, so there must be some.
  f.Real("held_out", Need::kOptional, {.min = 0, .max = kHeldOutMax, .min_open = true},
         &dataset.held_out);
  f.Integer("shuffle_window", Need::kOptional, {1, kWindowMax}, &dataset.shuffle_window);
  f.Integer("chunk_tokens", Need::kOptional, {2, kRowsMax}, &dataset.chunk_tokens);
  f.Later("chat_template", "chat templates");
  f.Later("seed", "choosing the seed of the plan");
}

void Reader::ReadCapture(Fields& f, CaptureRecipe& capture) {
  f.List("logits", Need::kOptional, /*one_allowed=*/true,
         [&](const YamlNode& node, const std::string& path) {
           ReadMap(node, path, "method", report_, [&](Fields& g) { ReadLogits(g, capture); });
         });
  f.Map("hidden", Need::kOptional, "", [&](Fields& g) {
    g.Truth("last", &capture.hidden_last);
    g.Integers("layers", {0, kLayersMax - 1}, &capture.hidden_layers);
    g.Choice<bool>("dtype", Need::kOptional, {{"bf16", false}, {"int8", true}},
                   &capture.layers_int8);
  });
  f.Later("attention", "attention probabilities");
  f.Later("attention_output", "outputs of attention heads");
}

void Reader::ReadLogits(Fields& f, CaptureRecipe& capture) {
  enum class Method { kSampled, kTopK, kTopP };
  Method method = Method::kSampled;
  f.Choice<Method>(
      "method", Need::kRequired,
      {{"sampled", Method::kSampled}, {"topk", Method::kTopK}, {"topp", Method::kTopP}}, &method);
  if (method == Method::kSampled) {
    int64_t draws = 50;
    f.Integer("draws", Need::kOptional, {1, kDrawsMax}, &draws);
    if (capture.sampled_draws.has_value()) {
      report_.AddAt(f.PathOf("method"), "sampled twice: draw once, as often as any student needs");
    }
    capture.sampled_draws = draws;
    return;
  }
  TopRecipe top{.k = kTopDefault};
  if (method == Method::kTopK) {
    f.Integer("k", Need::kOptional, {1, kTopIdsMax}, &top.k);
  } else {
    double p = 0;
    f.Real("p", Need::kRequired, {.min = kTopPMin, .max = 1 - kTopPMin}, &p);
    top.p_millionths = std::llround(p * 1e6);
    if (std::abs(p * 1e6 - static_cast<double>(top.p_millionths)) > 1e-6) {
      report_.AddAt(f.PathOf("p"), "has more than 6 digits behind the point");
    }
    f.Integer("k_max", Need::kOptional, {1, kTopIdsMax}, &top.k);
  }
  capture.top.push_back(top);
}

void Reader::ReadCache(Fields& f, Recipe& recipe) {
  using Retention = CacheRecipe::Retention;
  f.Later("servers", "cache servers started elsewhere");
  std::optional<int64_t> bytes_max;
  f.Integer("bytes_max", {kCacheBytesMin, kCacheBytesMax}, &bytes_max);
  recipe.cache.bytes_max = static_cast<uint64_t>(bytes_max.value_or(0));
  f.Choice<Retention>("retention", Need::kOptional,
                      {{"keep", Retention::kKeep}, {"until_read", Retention::kUntilRead}},
                      &recipe.cache.retention);
  if (f.Find("servers") != nullptr && f.Find("directory") == nullptr) return;
  ReadPath(f, "directory", &recipe.cache_directory);
}

void Reader::ReadStudent(Fields& f, StudentRecipe& student) {
  f.Name("name", Need::kRequired, &student.name);
  f.Map("init", Need::kOptional, "from", [&](Fields& g) { ReadInit(g, student.init); });
  f.Integer("ranks", Need::kOptional, {1, 65'536}, &student.ranks);
  f.Choice("dtype", Need::kOptional, kDtypes, &student.dtype);
  student.micro_batch = 0;
  f.Map("batch", Need::kOptional, "tokens", [&](Fields& g) { ReadBatch(g, student); });
  f.List("losses", Need::kRequired, /*one_allowed=*/true,
         [&](const YamlNode& node, const std::string& path) { ReadLoss(node, path, student); });
  f.Map("optimizer", Need::kOptional, "name",
        [&](Fields& g) { ReadOptimizer(g, student.optimizer); });
  f.Integer("steps", Need::kRequired, {1, kStepsMax}, &student.steps);
  f.Seed("seed", &student.seed);
  f.Map("evaluate", Need::kOptional, "every", [&](Fields& g) {
    g.Integer("every", Need::kOptional, {1, kStepsMax}, &student.evaluate_every);
    g.Integer("early_stop", {1, kStepsMax}, &student.early_stop);
  });
  f.Map("checkpoint", Need::kOptional, "every", [&](Fields& g) {
    g.Integer("every", Need::kOptional, {1, kStepsMax}, &student.checkpoint_every);
    g.Integer("keep", Need::kOptional, {1, kKeptMax}, &student.checkpoint_keep);
  });
  f.Later("stages", "training in stages");
  f.Later("epochs", "training by epochs instead of steps");
  f.Later("offload", "offload to host memory");
  f.Later("model", "a student of another shape than its teacher's");
}

void Reader::ReadInit(Fields& f, InitRecipe& init) {
  using From = InitRecipe::From;
  f.Choice<From>("from", Need::kRequired,
                 {{"teacher", From::kTeacher}, {"scratch", From::kScratch}}, &init.from);
  f.Later("folder", "starting from another model's folder");
  f.Later("width", "narrower students");
  const YamlNode* layers = f.Find("layers");
  if (layers != nullptr && layers->kind == YamlNode::Kind::kList) {
    f.Integers("layers", {0, kLayersMax - 1}, &init.layers);
  } else {
    f.Map("layers", Need::kOptional, "", [&](Fields& g) { ReadLayers(g, init); });
  }
}

void Reader::ReadLayers(Fields& f, InitRecipe& init) {
  int64_t keep = 0;
  f.Integer("keep", Need::kRequired, {1, kLayersMax}, &keep);
  if (keep > 0) init.keep = keep;
  int by = 0;
  f.Choice<int>("by", Need::kOptional, {{"block_influence", 0}}, &by);
}

void Reader::ReadBatch(Fields& f, StudentRecipe& student) {
  f.Integer("tokens", Need::kOptional, {1, kRowsMax}, &student.batch_tokens);
  f.Integer("micro_batch", Need::kOptional, {1, kRowsMax}, &student.micro_batch);
  f.Truth("packing", &student.packing);
}

void Reader::ReadLoss(const YamlNode& node, const std::string& path, StudentRecipe& student) {
  YamlNode map = node;
  if (node.kind == YamlNode::Kind::kScalar) {  // "kl" stands for {kl: {}}
    YamlNode empty = node;
    empty.kind = YamlNode::Kind::kMap;
    map.kind = YamlNode::Kind::kMap;
    map.entries.push_back({node, empty});
  }
  LossRecipe loss;
  ReadMap(map, path, "", report_, [&](Fields& f) {
    const bool kl = f.Find("kl") != nullptr;
    const bool cross_entropy = f.Find("cross_entropy") != nullptr;
    if (kl) f.Map("kl", Need::kRequired, "targets", [&](Fields& g) { ReadKl(g, loss); });
    if (cross_entropy) f.Map("cross_entropy", Need::kRequired, "", [](Fields&) {});
    f.Real("weight", Need::kOptional, kAboveZero, &loss.weight);
    f.Later("jsd", "the Jensen-Shannon divergence as a loss");
    f.Later("reverse_kl", "the reverse KL as a loss");
    f.Later("hidden", "feature alignment");
    f.Later("attention", "attention transfer");
    loss.kind = kl ? LossRecipe::Kind::kKl : LossRecipe::Kind::kCrossEntropy;
    if (kl && cross_entropy) {
      report_.Add(
          {map.line, map.column, path, "kl and cross_entropy are two losses: one item each"});
    } else if (!kl && !cross_entropy) {
      report_.AddMissing({map.line, map.column, path, "expected kl or cross_entropy"});
    }
  });
  student.losses.push_back(loss);
}

void Reader::ReadKl(Fields& f, LossRecipe& loss) {
  using Targets = LossRecipe::Targets;
  f.LaterWord("targets", "topp", "top-p targets");
  f.Choice<Targets>("targets", Need::kOptional,
                    {{"sampled", Targets::kSampled},
                     {"topk", Targets::kTopK},
                     {"hidden_last", Targets::kHiddenLast}},
                    &loss.targets);
  const YamlNode* temperature = f.Find("temperature");
  if (temperature != nullptr && temperature->kind == YamlNode::Kind::kMap) {
    f.Later("temperature", "a temperature schedule");
  } else {
    f.Real("temperature", Need::kOptional, {.min = 0, .max = 1000, .min_open = true},
           &loss.temperature);
  }
  f.Later("direction", "directions of the KL");
}

void Reader::ReadOptimizer(Fields& f, OptimizerRecipe& optimizer) {
  using Schedule = OptimizerRecipe::Schedule;
  int name = 0;
  f.Choice<int>("name", Need::kOptional, {{"adamw", 0}}, &name);
  f.Real("lr", Need::kOptional, {.min = 0, .max = 1, .min_open = true}, &optimizer.lr);
  std::vector<double> betas = {optimizer.beta1, optimizer.beta2};
  f.Reals("betas", 2, kDecay, &betas);
  optimizer.beta1 = betas[0];
  optimizer.beta2 = betas[1];
  f.Real("epsilon", Need::kOptional, kAboveZero, &optimizer.epsilon);
  f.Real("weight_decay", Need::kOptional, kFromZero, &optimizer.weight_decay);
  f.Real("warmup", Need::kOptional, kShare, &optimizer.warmup);
  f.LaterWord("schedule", "linear", "the linear schedule");
  f.Choice<Schedule>("schedule", Need::kOptional,
                     {{"cosine", Schedule::kCosine}, {"constant", Schedule::kConstant}},
                     &optimizer.schedule);
  f.Real("clip", Need::kOptional, kFromZero, &optimizer.clip);
}

absl::Status Refusal(const std::string& path, const YamlProblem& problem) {
  return absl::InvalidArgumentError(absl::StrCat(path, ":", problem.line, ":", problem.column, ": ",
                                                 problem.key, ": ", problem.what));
}

}  // namespace

absl::StatusOr<Recipe> ParseRecipe(absl::string_view text, const std::string& path) {
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::absolute(path, error);
  if (error) {
    return absl::InternalError(absl::StrCat(path, ": no current folder: ", error.message()));
  }
  SH_RETURN_IF_ERROR(CheckPathIsUtf8(absolute.native()));
  const std::variant<YamlNode, YamlProblem> tree = ParseYaml(text);
  if (const auto* problem = std::get_if<YamlProblem>(&tree)) return Refusal(path, *problem);
  Recipe recipe;
  recipe.path = path;
  recipe.text = std::string(text);
  Report report;
  Reader reader(FolderOf(absolute.lexically_normal().string()), report);
  ReadMap(std::get<YamlNode>(tree), "", "", report, [&](Fields& f) { reader.ReadTop(f, recipe); });
  if (!report.ok()) return Refusal(path, report.First());
  for (StudentRecipe& student : recipe.students) {
    if (student.micro_batch != 0) continue;
    // As much as is usual, or one document of the largest size.
    student.micro_batch =
        std::min(student.batch_tokens, std::max(kMicroBatchDefault, recipe.dataset.max_tokens - 1));
  }
  CheckRules(recipe, report);
  if (!report.ok()) return Refusal(path, report.First());
  return recipe;
}

absl::StatusOr<Recipe> ReadRecipe(const std::string& path) {
  SH_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kYamlBytesMax));
  return ParseRecipe(text, path);
}

}  // namespace stillhouse

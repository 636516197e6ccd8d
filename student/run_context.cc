#include "student/run_context.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "ATen/ops/empty.h"
#include "common/file.h"
#include "common/log.h"
#include "common/status.h"
#include "formats/json.h"
#include "formats/safetensors.h"
#include "model/torch_status.h"
#include "student/chunk_watch.h"
#include "student/data_cursor.h"

namespace stillhouse {
namespace {

constexpr uint64_t kManifestBytesMax = 1 << 20;

std::string ManifestPath(const RunSpec& spec) { return JoinPath(spec.run_folder, "manifest.json"); }

absl::StatusOr<std::vector<double>> FetchInfluence(const RunContext& context,
                                                   const Services& services) {
  SH_RETURN_IF_ERROR(AwaitChunk(services, 0, kNeedsTeacherGrace));
  const std::string name =
      ArtefactObjectName(context.spec.teacher, InfluenceArtefactName(context.spec.plan));
  SH_ASSIGN_OR_RETURN_AT(const auto bytes, FetchObject(services, name),
                         "the teacher's block influence");
  return ParseInfluence(*bytes, context.teacher.config.layers);
}

// The kept layers that an earlier start of this run wrote down; nullopt at the first start.
absl::StatusOr<std::optional<StudentShape>> RecordedShape(const RunContext& context) {
  const std::string path = ManifestPath(context.spec);
  if (!PathExists(path)) return std::nullopt;
  SH_ASSIGN_OR_RETURN(const Json json, ReadJsonFile(path, kManifestBytesMax));
  const JsonFields fields(json, path);
  SH_ASSIGN_OR_RETURN(const std::string run_hash, fields.RequiredString("run_hash"));
  if (run_hash != context.run_hash.Hex()) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": belongs to another run; choose another output folder"));
  }
  StudentRecipe recorded = context.student;
  const Json* layers = fields.Find("teacher_layers");
  if (layers == nullptr || !layers->is_array()) {
    return absl::DataLossError(absl::StrCat(path, ": no list teacher_layers"));
  }
  recorded.init.layers.clear();
  for (const Json& layer : *layers) {
    if (!layer.is_number_integer()) {
      return absl::DataLossError(absl::StrCat(path, ": teacher_layers must hold integers"));
    }
    recorded.init.layers.push_back(layer.get<int64_t>());
  }
  if (!recorded.init.layers.empty()) recorded.init.keep.reset();
  SH_ASSIGN_OR_RETURN(StudentShape shape, ResolveShape(recorded, context.teacher.config, {}));
  return shape;
}

absl::Status WriteManifest(const RunContext& context) {
  OrderedJson json;
  json["run"] = RunName(context.recipe, context.student);
  json["run_hash"] = context.run_hash.Hex();
  json["plan"] = context.spec.plan.Hex();
  json["teacher"] = context.spec.teacher.Hex();
  json["teacher_layers"] = context.shape.teacher_layers;
  json["layers"] = context.shape.config.layers;
  json["parameters"] = context.shape.config.ParameterCount();
  return WriteFileAtomically(ManifestPath(context.spec), json.dump(2) + "\n");
}

absl::StatusOr<StudentRecipe> FindStudent(const Recipe& recipe, const std::string& name) {
  for (const StudentRecipe& student : recipe.students) {
    if (student.name == name) return student;
  }
  return absl::NotFoundError(absl::StrCat(recipe.path, ": no student named ", name));
}

absl::Status CheckTokenizer(const RunContext& context) {
  const Tokenizer& tokenizer = *context.teacher.tokenizer;
  if (tokenizer.Fingerprint() != context.plan->tokenizer_fingerprint()) {
    return absl::FailedPreconditionError(
        absl::StrCat(context.teacher.path, ": its tokenizer (", tokenizer.Fingerprint().ShortHex(),
                     ") is not the plan's (", context.plan->tokenizer_fingerprint().ShortHex(),
                     "): the model file has changed since the recipe was submitted"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<LossTerm>> LossTermsOf(const StudentRecipe& student) {
  std::vector<LossTerm> terms;
  for (const LossRecipe& loss : student.losses) {
    LossTerm term;
    term.weight = loss.weight;
    if (loss.kind == LossRecipe::Kind::kCrossEntropy) {
      term.kind = LossKind::kCrossEntropy;
    } else if (loss.targets == LossRecipe::Targets::kHiddenLast) {
      term.kind = LossKind::kExactKl;
      term.temperature = loss.temperature;
    } else if (loss.temperature == 1.0) {
      term.kind =
          loss.targets == LossRecipe::Targets::kTopK ? LossKind::kTopKl : LossKind::kSampledKl;
    } else {
      return absl::FailedPreconditionError(absl::StrCat(
          "student ", student.name, ": sampled and top-k targets serve temperature 1 only, not ",
          loss.temperature, ": capture hidden/last and use targets: hidden"));
    }
    terms.push_back(term);
  }
  if (terms.empty()) {
    return absl::FailedPreconditionError(absl::StrCat("student ", student.name, ": no losses"));
  }
  return terms;
}

absl::StatusOr<std::vector<SectionSpec>> SectionsOf(const std::vector<LossTerm>& terms,
                                                    const std::vector<std::string>& captured) {
  std::vector<SectionSpec> sections;
  const auto need = [&](SectionKind kind) -> absl::Status {
    for (const SectionSpec& section : sections) {
      if (section.kind == kind) return absl::OkStatus();
    }
    std::optional<SectionSpec> found;
    for (const std::string& canonical : captured) {
      SH_ASSIGN_OR_RETURN(const SectionSpec spec, ParseSectionSpec(canonical));
      // Of several top-k sections, the one that says most.
      if (spec.kind == kind && (!found.has_value() || spec.k > found->k)) found = spec;
    }
    if (found.has_value()) {
      sections.push_back(*found);
      return absl::OkStatus();
    }
    SectionSpec missing;
    missing.kind = kind;
    return absl::FailedPreconditionError(absl::StrCat("a loss needs the section ", missing.Name(),
                                                      ", which the job does not capture"));
  };
  for (const LossTerm& term : terms) {
    if (term.kind == LossKind::kSampledKl) {
      SH_RETURN_IF_ERROR(need(SectionKind::kLogitsSampled));
      SH_RETURN_IF_ERROR(need(SectionKind::kStats));
    }
    if (term.kind == LossKind::kTopKl) SH_RETURN_IF_ERROR(need(SectionKind::kLogitsTopK));
    if (term.kind == LossKind::kExactKl) SH_RETURN_IF_ERROR(need(SectionKind::kHiddenLast));
  }
  return sections;
}

namespace {

absl::StatusOr<RunContext> PrepareRank(const RunSpec& spec, const Services& services,
                                       absl::FunctionRef<void(absl::string_view)> tell) {
  RunContext context;
  context.spec = spec;
  SH_ASSIGN_OR_RETURN(context.recipe, ParseRecipe(spec.recipe_text, spec.recipe_path));
  SH_ASSIGN_OR_RETURN(context.student, FindStudent(context.recipe, spec.student));
  const StudentRecipe& student = context.student;
  const int ranks = services.communicator == nullptr ? 1 : services.communicator->size();
  if (student.ranks != ranks) {
    return absl::FailedPreconditionError(
        absl::StrCat("student ", student.name, " has ", student.ranks, " ranks, not ", ranks,
                     ": start it with libexec/stillhouse/rank_launcher --ranks ", student.ranks,
                     " student_trainer ..."));
  }
  context.run_hash = RunHash(context.recipe, student, {spec.plan, spec.teacher});
  SH_ASSIGN_OR_RETURN(context.terms, LossTermsOf(student));
  SH_ASSIGN_OR_RETURN(context.sections, SectionsOf(context.terms, spec.sections));

  SH_ASSIGN_OR_RETURN_AT(const auto bytes, FetchObject(services, PlanObjectName(spec.plan)),
                         "fetching the plan");
  SH_ASSIGN_OR_RETURN(context.plan, ParsePlan(bytes));
  if (context.plan->digest() != spec.plan) {
    return absl::DataLossError("the plan in the cache is not the one that the job names");
  }
  SH_RETURN_IF_ERROR(CheckPlanFits(*context.plan, static_cast<uint64_t>(student.batch_tokens),
                                   static_cast<uint64_t>(student.micro_batch), student.ranks));
  if (context.plan->held_out_rows() > 0) {
    SH_ASSIGN_OR_RETURN(context.held_out_sections,
                        SectionsOf({{LossKind::kExactKl}}, spec.held_out_sections));
  }
  SH_ASSIGN_OR_RETURN(context.teacher, OpenModelFiles(context.recipe.teacher.model));
  SH_RETURN_IF_ERROR(CheckTokenizer(context));

  SH_RETURN_IF_ERROR(MakeFolders(spec.run_folder));
  SH_ASSIGN_OR_RETURN(const auto recorded, RecordedShape(context));
  if (recorded.has_value()) {
    context.shape = *recorded;
    return context;
  }
  std::vector<double> influence;
  if (NeedsInfluence(student.init)) {
    tell(
        "reads the influence of the teacher's layers, which the first chunk of a capture measures");
    SH_ASSIGN_OR_RETURN(influence, FetchInfluence(context, services));
    tell("");
  }
  SH_ASSIGN_OR_RETURN(context.shape, ResolveShape(student, context.teacher.config, influence));
  SH_RETURN_IF_ERROR(WriteManifest(context));
  return context;
}

}  // namespace

absl::StatusOr<RunContext> PrepareRun(const RunSpec& spec, const Services& services,
                                      RankGroup& group,
                                      absl::FunctionRef<void(absl::string_view)> tell) {
  absl::StatusOr<RunContext> context = absl::UnknownError("not prepared");
  if (group.leads()) context = PrepareRank(spec, services, tell);
  SH_RETURN_IF_ERROR(group.FromLeader(group.leads() ? context.status() : absl::OkStatus()));
  // The first has written down what the others would have to wait for.
  if (!group.leads()) context = PrepareRank(spec, services, tell);
  SH_RETURN_IF_ERROR(group.Agree(context.status()));
  return context;
}

CheckpointRules RulesOf(const RunContext& context) {
  return {.run_hash = context.run_hash,
          .seed = context.student.seed,
          .teacher_layers = context.shape.teacher_layers,
          .steps = static_cast<uint64_t>(context.student.steps),
          .step_rows = static_cast<uint64_t>(context.student.batch_tokens),
          .epoch_documents = TrainingDocumentCount(*context.plan),
          .epoch_rows = context.plan->training_rows()};
}

absl::StatusOr<at::Tensor> FetchTeacherHead(const RunContext& context, const Services& services) {
  SH_RETURN_IF_ERROR(AwaitChunk(services, 0, kNeedsTeacherGrace));
  SH_ASSIGN_OR_RETURN_AT(
      const auto bytes,
      FetchObject(services, ArtefactObjectName(context.spec.teacher, "lm_head/bf16")),
      "the teacher's head");
  // The reader maps a file.
  SH_ASSIGN_OR_RETURN(const TempFolder folder, TempFolder::Create("stillhouse-head"));
  const std::string path = JoinPath(folder.path(), "lm_head.safetensors");
  SH_RETURN_IF_ERROR(WriteFileAtomically(path, *bytes));
  SH_ASSIGN_OR_RETURN_AT(const auto file, SafetensorsFile::Open(path), "the teacher's head");
  const SafetensorsTensor* tensor = file->Find("lm_head.weight");
  if (tensor == nullptr || tensor->shape.size() != 2 ||
      tensor->shape[0] < static_cast<int64_t>(context.plan->vocabulary())) {
    return absl::DataLossError(
        "the teacher's head: no matrix lm_head.weight with a row for each id");
  }
  at::Tensor head;
  SH_RETURN_IF_ERROR(
      CallTorch([&] { head = at::empty(tensor->shape, at::TensorOptions().dtype(at::kFloat)); }));
  SH_RETURN_IF_ERROR(file->ReadF32(
      *tensor, absl::MakeSpan(head.mutable_data_ptr<float>(), static_cast<size_t>(head.numel()))));
  return head;
}

}  // namespace stillhouse

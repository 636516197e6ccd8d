#include "student/trainer.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "common/blocking.h"
#include "common/log.h"
#include "common/status.h"
#include "model/torch_status.h"
#include "student/checkpoint.h"
#include "student/evaluation.h"
#include "student/export.h"
#include "student/metrics_log.h"
#include "student/prefetcher.h"
#include "student/reporter.h"
#include "student/run_context.h"
#include "student/stepper.h"
#include "student/stop_watcher.h"

namespace stillhouse {
namespace {

// How far the loader reads ahead of the step at hand.
constexpr uint64_t kReadAheadSteps = 3;
// Held-out documents taken from the cache at a time.
constexpr size_t kHeldOutBatch = 16;

class Run {
 public:
  Run(RunContext context, const Services& services, Reporter& reporter)
      : context_(std::move(context)),
        services_(services),
        reporter_(reporter),
        state_(context_.shape.config,
               context_.student.dtype == "bf16" ? DType::kBF16 : DType::kF32),
        checkpoints_(context_.spec.run_folder),
        started_(Now()) {}

  ~Run() {
    // The loaders belong to the executor.
    RunOnExecutor(services_.executor, [this] {
      loader_.reset();
      held_out_loader_.reset();
    });
  }

  uint64_t step() const { return progress_.step; }

  absl::Status Execute() {
    SH_RETURN_IF_ERROR(Load());
    const absl::Status trained = Train();
    if (!trained.ok()) return LeaveEarly(trained);
    SetPhase("exporting");
    SH_ASSIGN_OR_RETURN(const std::string folder, ExportStudent(context_, state_));
    LogInfo("exported to ", folder);
    reporter_.Update([&](RunReport& report) {
      report.phase = "finished";
      report.exported_to = folder;
    });
    UpdateTimes();
    return Annotate(reporter_.Flush(), "telling the coordinator that the run has finished");
  }

  // Fails whatever waits for data. Executor only.
  void Interrupt(const absl::Status& why) {
    interrupted_ = why;
    if (loader_ != nullptr) loader_->Fail(why);
    if (held_out_loader_ != nullptr) held_out_loader_->Fail(why);
  }

 private:
  absl::Duration Now() const { return services_.executor.clock().Now(); }
  uint64_t steps() const { return static_cast<uint64_t>(context_.student.steps); }
  uint64_t step_rows() const { return static_cast<uint64_t>(context_.student.batch_tokens); }

  void SetPhase(absl::string_view phase, absl::string_view message = "") {
    reporter_.Update([&](RunReport& report) {
      report.phase = std::string(phase);
      report.message = std::string(message);
    });
  }

  double Seconds() const { return seconds_before_ + absl::ToDoubleSeconds(Now() - started_); }

  void UpdateTimes() {
    reporter_.Update([&](RunReport& report) {
      report.seconds = Seconds();
      report.waited_s = progress_.waited_s;
      report.step = progress_.step;
    });
  }

  absl::Status Load() {
    SetPhase("loading");
    reporter_.Update([&](RunReport& report) {
      report.steps = steps();
      report.parameters = static_cast<uint64_t>(context_.shape.config.ParameterCount());
    });
    SH_ASSIGN_OR_RETURN(const std::string resumed_from, Resume());
    if (resumed_from.empty()) {
      SH_RETURN_IF_ERROR(InitialiseMasters(context_.shape, *context_.teacher.weights,
                                           context_.student.seed, &state_));
      progress_ = {};
      progress_.seed = context_.student.seed;
      progress_.run_hash = context_.run_hash;
      progress_.teacher_layers = context_.shape.teacher_layers;
    }
    seconds_before_ = progress_.seconds;
    saved_step_ = progress_.step;
    SH_RETURN_IF_ERROR(
        checkpoints_.Prune(resumed_from, static_cast<size_t>(context_.student.checkpoint_keep)));
    SH_ASSIGN_OR_RETURN(metrics_,
                        MetricsLog::Open(context_.spec.run_folder, progress_.step, context_.terms));
    StudentLossOptions loss{context_.terms, context_.plan->vocabulary(), {}};
    for (const LossTerm& term : context_.terms) {
      if (term.kind != LossKind::kExactKl) continue;
      SH_RETURN_IF_ERROR(LoadTeacherHead());
      const at::ScalarType dtype = state_.weights.size() > 0 ? at::kBFloat16 : at::kFloat;
      SH_RETURN_IF_ERROR(CallTorch([&] { loss.teacher_head = teacher_head_.to(dtype); }));
      break;
    }
    SH_ASSIGN_OR_RETURN(model_, MakePlannedStudent(context_.shape.config, state_.Weights(), loss,
                                                   context_.student.micro_batch));
    stepper_ = std::make_unique<Stepper>(context_.student, context_.terms, *model_, state_);
    cursor_ = std::make_unique<DataCursor>(context_.plan, context_.student.seed, progress_.data);
    PrefetchOptions options;
    options.teacher = context_.spec.teacher;
    options.sections = context_.sections;
    options.read_ahead_rows = kReadAheadSteps * step_rows();
    SetLoader(&loader_, options,
              StepDocuments(context_.plan, *cursor_, steps() - progress_.step, step_rows()));
    UpdateTimes();
    return absl::OkStatus();
  }

  void SetLoader(std::unique_ptr<Prefetcher>* place, PrefetchOptions options,
                 absl::AnyInvocable<std::optional<uint32_t>()> next) {
    options.on_wait = [this](const std::string& what) { SetPhase("waiting", what); };
    RunOnExecutor(services_.executor, [&] {
      *place = std::make_unique<Prefetcher>(services_.executor, services_.run, services_.cache,
                                            context_.plan, options, std::move(next));
      if (!interrupted_.ok()) (*place)->Fail(interrupted_);
    });
  }

  absl::Status LoadTeacherHead() {
    if (teacher_head_.defined()) return absl::OkStatus();
    SH_ASSIGN_OR_RETURN(teacher_head_, FetchTeacherHead(context_, services_));
    return absl::OkStatus();
  }

  CheckpointRules Rules() const {
    return {.run_hash = context_.run_hash,
            .seed = context_.student.seed,
            .teacher_layers = context_.shape.teacher_layers,
            .steps = steps(),
            .step_rows = step_rows(),
            .epoch_documents = TrainingDocumentCount(*context_.plan),
            .epoch_rows = context_.plan->training_rows()};
  }

  // The name of the checkpoint that the state was read from; "" at a start.
  absl::StatusOr<std::string> Resume() {
    const std::string& committed = context_.spec.checkpoint;
    if (committed.empty()) return std::string();
    if (!checkpoints_.FolderExists()) {
      LogWarning(checkpoints_.folder(), " was removed: this run is trained from its start");
      return std::string();
    }
    const auto found = checkpoints_.ReadNewest(committed, Rules(), &state_);
    if (!found.ok()) return StopStatus(RunStop::kNoCheckpoint, found.status().message());
    progress_ = found->progress;
    LogInfo("resuming after step ", progress_.step, " from ", found->name);
    return found->name;
  }

  // An interruption in the middle of one that was due leaves a checkpoint of its step without it.
  bool LacksEvaluation() const {
    const auto every = static_cast<uint64_t>(context_.student.evaluate_every);
    return every > 0 && progress_.evaluations < progress_.step / every;
  }

  absl::Status Train() {
    if (LacksEvaluation()) SH_RETURN_IF_ERROR(Evaluate());
    while (progress_.step < steps() && !StopsEarly()) {
      SH_RETURN_IF_ERROR(CheckStop(services_));
      SH_RETURN_IF_ERROR(TrainStep());
      if (IsDue(context_.student.evaluate_every)) SH_RETURN_IF_ERROR(Evaluate());
      if (IsDue(context_.student.checkpoint_every)) SH_RETURN_IF_ERROR(SaveCheckpoint());
    }
    if (evaluated_step_ != progress_.step || progress_.evaluations == 0) {
      SH_RETURN_IF_ERROR(Evaluate());
    }
    return SaveCheckpoint();
  }

  bool IsDue(int64_t every) const {
    return every > 0 && progress_.step % static_cast<uint64_t>(every) == 0;
  }

  bool StopsEarly() const {
    return context_.student.early_stop.has_value() &&
           progress_.evaluations_without_gain >=
               static_cast<uint64_t>(*context_.student.early_stop);
  }

  absl::StatusOr<std::vector<DocumentTargets>> Take(std::unique_ptr<Prefetcher>& loader,
                                                    size_t count, double* waited_s) {
    const absl::Duration before = Now();
    auto taken = CallAndWait<std::vector<DocumentTargets>>(
        services_.executor, [&](auto done) { loader->Take(count, std::move(done)); });
    *waited_s = absl::ToDoubleSeconds(Now() - before);
    progress_.waited_s += *waited_s;
    return taken;
  }

  absl::Status TrainStep() {
    // Moved on only once the step is made, so that a checkpoint never skips documents.
    DataCursor after = *cursor_;
    const std::vector<uint32_t> documents = TakeStep(*context_.plan, after, step_rows());
    double waited_s = 0;
    SH_ASSIGN_OR_RETURN(const auto data, Take(loader_, documents.size(), &waited_s));
    SH_CHECK(data.size() == documents.size());
    for (size_t i = 0; i < data.size(); ++i) SH_CHECK(data[i].document == documents[i]);
    SetPhase("training");
    const absl::Duration before = Now();
    SH_ASSIGN_OR_RETURN(StepMetrics metrics,
                        stepper_->Step(*context_.plan, data, progress_.step + 1,
                                       [this] { return CheckStop(services_); }));
    const double seconds = absl::ToDoubleSeconds(Now() - before);
    metrics.waited_s = waited_s;
    metrics.rows_per_s = seconds > 0 ? static_cast<double>(metrics.rows) / seconds : 0;
    *cursor_ = after;
    progress_.step += 1;
    progress_.data = after.position();
    services_.executor.Post(
        [loader = loader_.get(), rate = metrics.rows_per_s] { loader->SetRate(rate); });
    reporter_.Update([&](RunReport& report) {
      report.loss = metrics.loss;
      report.rows_per_s = metrics.rows_per_s;
    });
    UpdateTimes();
    return metrics_->Add(metrics);
  }

  absl::Status Evaluate() {
    evaluated_step_ = progress_.step;
    if (context_.held_out_sections.empty()) {
      if (progress_.evaluations == 0) LogWarning("no held-out documents: nothing to evaluate on");
      return absl::OkStatus();
    }
    SetPhase("evaluating");
    PrefetchOptions options;
    options.teacher = context_.spec.teacher;
    options.sections = context_.held_out_sections;
    SetLoader(&held_out_loader_, options, HeldOutDocuments(*context_.plan));
    std::optional<Evaluator> evaluator;
    for (;;) {
      SH_RETURN_IF_ERROR(CheckStop(services_));
      double waited_s = 0;
      SH_ASSIGN_OR_RETURN(const auto taken, Take(held_out_loader_, kHeldOutBatch, &waited_s));
      if (taken.empty()) break;
      SetPhase("evaluating");
      if (!evaluator.has_value()) {
        SH_RETURN_IF_ERROR(LoadTeacherHead());
        evaluator.emplace(*model_, teacher_head_, context_.plan->vocabulary());
      }
      SH_RETURN_IF_ERROR(EvaluateDocuments(*evaluator, taken));
    }
    SH_CHECK(evaluator.has_value());
    const Evaluation evaluation = evaluator->Finish(progress_.step);
    if (evaluation.rows == 0) {
      LogWarning("the loss mask leaves no row of the held-out documents: nothing to evaluate on");
      return absl::OkStatus();
    }
    return NoteEvaluation(evaluation);
  }

  absl::Status EvaluateDocuments(Evaluator& evaluator,
                                 absl::Span<const DocumentTargets> documents) {
    std::vector<uint32_t> rows;
    for (const DocumentTargets& document : documents) {
      rows.push_back(context_.plan->document(document.document).rows());
    }
    const auto longest = static_cast<int64_t>(*std::max_element(rows.begin(), rows.end()));
    size_t next = 0;
    for (const size_t size : GroupDocuments(
             rows, static_cast<uint64_t>(std::max(context_.student.micro_batch, longest)),
             /*packed=*/true)) {
      SH_RETURN_IF_ERROR(evaluator.Add(*context_.plan, documents.subspan(next, size)));
      next += size;
    }
    return absl::OkStatus();
  }

  absl::Status NoteEvaluation(const Evaluation& evaluation) {
    LogInfo("step ", evaluation.step, ": perplexity ", evaluation.perplexity, " (teacher ",
            evaluation.teacher_perplexity, "), KL ", evaluation.kl, " ± ", evaluation.kl_se,
            ", agreement ", evaluation.agreement);
    // What a run is asked to bring down: its distance from the teacher, or without one its
    // perplexity.
    const bool distils =
        std::any_of(context_.terms.begin(), context_.terms.end(),
                    [](const LossTerm& term) { return term.kind != LossKind::kCrossEntropy; });
    const double value = distils ? evaluation.kl : evaluation.perplexity;
    if (progress_.evaluations == 0 || value < progress_.best) {
      progress_.best = value;
      progress_.best_step = progress_.step;
      progress_.evaluations_without_gain = 0;
    } else {
      ++progress_.evaluations_without_gain;
    }
    ++progress_.evaluations;
    reporter_.Update([&](RunReport& report) {
      report.has_evaluation = true;
      report.evaluation = evaluation;
    });
    UpdateTimes();
    const absl::Status reported = reporter_.Flush();
    if (!reported.ok()) LogWarning("evaluation not reported: ", reported.message());
    return metrics_->Add(evaluation);
  }

  absl::Status SaveCheckpoint() {
    if (saved_step_ == progress_.step) return absl::OkStatus();
    progress_.seconds = Seconds();
    SH_ASSIGN_OR_RETURN(const std::string name,
                        checkpoints_.Write(progress_, state_, context_.spec.run_epoch));
    const absl::Status committed =
        CallAndWait<bool>(services_.executor, [&](auto done) {
          services_.run.CommitCheckpoint(progress_.step, name, std::move(done));
        }).status();
    if (absl::IsAborted(committed)) {
      return StopStatus(RunStop::kSuperseded, committed.message());
    }
    SH_RETURN_IF_ERROR_AT(committed, "committing a checkpoint");
    saved_step_ = progress_.step;
    return checkpoints_.Prune(name, static_cast<size_t>(context_.student.checkpoint_keep));
  }

  // Saves what a later start can use, and passes `why` on.
  absl::Status LeaveEarly(const absl::Status& why) {
    const RunStop stop = StopOf(why);
    if (stop == RunStop::kCancelled || stop == RunStop::kSuperseded || stop == RunStop::kDiverged ||
        stop == RunStop::kFailed) {
      return why;
    }
    const absl::Status saved = SaveCheckpoint();
    if (!saved.ok()) LogError("could not save: ", saved.message());
    return why;
  }

  const RunContext context_;
  const Services services_;
  Reporter& reporter_;
  StudentState state_;
  CheckpointStore checkpoints_;
  std::optional<MetricsLog> metrics_;
  std::unique_ptr<StudentModel> model_;
  std::unique_ptr<Stepper> stepper_;
  std::unique_ptr<DataCursor> cursor_;
  at::Tensor teacher_head_;  // fp32, once needed
  RunProgress progress_;
  uint64_t saved_step_ = 0;
  uint64_t evaluated_step_ = 0;
  double seconds_before_ = 0;  // of earlier starts
  const absl::Duration started_;
  // Executor only.
  std::unique_ptr<Prefetcher> loader_, held_out_loader_;
  absl::Status interrupted_;
};

absl::Status Superseded(absl::Status status) {
  if (!absl::IsAborted(status) || StopOf(status) != RunStop::kFailed) return status;
  return StopStatus(RunStop::kSuperseded, status.message());
}

}  // namespace

absl::Status TrainStudent(const RunSpec& spec, const Services& services,
                          const TrainerOptions& options) {
  // Set and cleared on the executor, where the reporter reads it.
  Run* running = nullptr;
  absl::Status cancelled;
  uint64_t step = 0;
  absl::Status status;
  {
    Reporter reporter(services.executor, services.run, options.report_every, [&](absl::Status why) {
      cancelled = why;
      if (running != nullptr) running->Interrupt(why);
    });
    reporter.Update([](RunReport& report) { report.phase = "loading"; });
    status = [&]() -> absl::Status {
      SH_ASSIGN_OR_RETURN(RunContext context,
                          PrepareRun(spec, services, [&](absl::string_view what) {
                            if (!what.empty()) LogInfo(what);
                            reporter.Update([&](RunReport& r) { r.message = std::string(what); });
                          }));
      Run run(std::move(context), services, reporter);
      RunOnExecutor(services.executor, [&] {
        running = &run;
        if (!cancelled.ok()) run.Interrupt(cancelled);
      });
      const StopWatcher watcher(services, [&](absl::Status why) { run.Interrupt(why); });
      const absl::Status executed = run.Execute();
      RunOnExecutor(services.executor, [&] { running = nullptr; });
      step = run.step();
      return executed;
    }();
    status = Superseded(status);
    if (!status.ok() && StopOf(status) != RunStop::kSuperseded) {
      const bool failed = StopOf(status) != RunStop::kTerminated;
      reporter.Update([&](RunReport& report) {
        if (failed) report.phase = "failed";
        report.message = std::string(status.message());
      });
      reporter.Flush().IgnoreError();  // the exit file says the same
    }
  }
  const absl::Status written = WriteExitFile(spec.run_folder, status, step);
  if (!written.ok()) LogError(written.message());
  return status;
}

}  // namespace stillhouse

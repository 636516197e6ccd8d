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
#include "sharding/keep_forever.h"
#include "student/checkpoint.h"
#include "student/evaluation.h"
#include "student/export.h"
#include "student/metrics_log.h"
#include "student/prefetcher.h"
#include "student/rank_group.h"
#include "student/rank_take.h"
#include "student/reporter.h"
#include "student/run_context.h"
#include "student/step_split.h"
#include "student/stepper.h"
#include "student/stop_watcher.h"

namespace stillhouse {
namespace {

// How far the loader reads ahead of the step at hand.
constexpr uint64_t kReadAheadSteps = 3;
// Held-out documents taken from the cache at a time.
constexpr size_t kHeldOutBatch = 16;
constexpr absl::Duration kAloneDeadline = absl::Minutes(1);  // one rank alone waits for nobody

class Run {
 public:
  // `reporter` is null on all ranks but the first.
  Run(RunContext context, const Services& services, RankGroup& group, Reporter* reporter)
      : context_(std::move(context)),
        services_(services),
        group_(group),
        reporter_(reporter),
        state_(std::make_shared<StudentState>(
            context_.shape.config, context_.student.dtype == "bf16" ? DType::kBF16 : DType::kF32,
            ShardOptions{group.rank(), group.ranks(), {}})),
        checkpoints_(context_.spec.run_folder),
        started_(Now()) {
    if (services.communicator == nullptr) alone_ = MakeThreadCommunicators(1, kAloneDeadline);
    Communicator& communicator = alone_.empty() ? *services.communicator : *alone_[0];
    // Gradients travel in the dtype that they are computed in.
    const DType wire = state_->Weights().dtype;
    zero2_ = std::make_unique<Zero2>(state_->plan, communicator, state_->Shard(),
                                     Zero2Options{.wire = wire});
  }

  ~Run() {
    // The loaders belong to the executor.
    RunOnExecutor(services_.executor, [this] {
      loader_.reset();
      held_out_loader_.reset();
    });
    // Ranks that leave together leave no collective under way; a dead communicator may still
    // write into the state.
    if (!group_.lost()) Checked(zero2_->AwaitAllWeights()).IgnoreError();
    if (group_.lost()) KeepForever(state_);
  }

  uint64_t step() const { return progress_.step; }

  absl::Status Execute() {
    SH_RETURN_IF_ERROR(Load());
    const absl::Status trained = Train();
    if (!trained.ok()) return LeaveEarly(trained);
    SetPhase("exporting");
    SH_RETURN_IF_ERROR(Checked(zero2_->AwaitAllWeights()));
    SH_RETURN_IF_ERROR(group_.FromLeader(group_.leads() ? Export() : absl::OkStatus()));
    return absl::OkStatus();
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
  uint64_t micro_rows() const { return static_cast<uint64_t>(context_.student.micro_batch); }

  void Tell(absl::FunctionRef<void(RunReport&)> change) {
    if (reporter_ != nullptr) reporter_->Update(change);
  }

  void SetPhase(absl::string_view phase, absl::string_view message = "") {
    Tell([&](RunReport& report) {
      report.phase = std::string(phase);
      report.message = std::string(message);
    });
  }

  double Seconds() const { return seconds_before_ + absl::ToDoubleSeconds(Now() - started_); }

  void UpdateTimes() {
    Tell([&](RunReport& report) {
      report.seconds = Seconds();
      report.waited_s = progress_.waited_s;
      report.step = progress_.step;
    });
  }

  // Of the data parallel engine: an error of the communicator is a lost rank.
  absl::Status Checked(const absl::Status& status) {
    return !status.ok() && zero2_->dead() ? group_.Lost(status) : status;
  }

  absl::Status Load() {
    SetPhase("loading");
    Tell([&](RunReport& report) {
      report.steps = steps();
      report.parameters = static_cast<uint64_t>(context_.shape.config.ParameterCount());
    });
    SH_ASSIGN_OR_RETURN(const std::string resumed_from, LoadState());
    SH_RETURN_IF_ERROR(Checked(zero2_->PublishWeights(RunOnComputeThreads)));
    SH_RETURN_IF_ERROR(group_.Agree(LoadForTraining(resumed_from)));
    UpdateTimes();
    return absl::OkStatus();
  }

  // The name of the checkpoint that the state was read from; "" at a start.
  absl::StatusOr<std::string> LoadState() {
    absl::StatusOr<std::string> resumed_from = Resume();
    absl::Status loaded = resumed_from.status();
    if (group_.lost()) return loaded;
    if (loaded.ok() && resumed_from->empty()) {
      loaded = InitialiseMasters(context_.shape, *context_.teacher.weights, context_.student.seed,
                                 state_.get());
      progress_ = {};
      progress_.seed = context_.student.seed;
      progress_.run_hash = context_.run_hash;
      progress_.teacher_layers = context_.shape.teacher_layers;
    }
    SH_RETURN_IF_ERROR(group_.Agree(loaded));
    seconds_before_ = progress_.seconds;
    saved_step_ = progress_.step;
    return resumed_from;
  }

  absl::Status LoadForTraining(const std::string& resumed_from) {
    if (group_.leads()) {
      SH_RETURN_IF_ERROR(
          checkpoints_.Prune(resumed_from, static_cast<size_t>(context_.student.checkpoint_keep)));
      SH_ASSIGN_OR_RETURN(
          metrics_, MetricsLog::Open(context_.spec.run_folder, progress_.step, context_.terms));
    }
    StudentLossOptions loss{context_.terms, context_.plan->vocabulary(), {}};
    for (const LossTerm& term : context_.terms) {
      if (term.kind != LossKind::kExactKl) continue;
      SH_RETURN_IF_ERROR(LoadTeacherHead());
      const at::ScalarType dtype = state_->weights.size() > 0 ? at::kBFloat16 : at::kFloat;
      SH_RETURN_IF_ERROR(CallTorch([&] { loss.teacher_head = teacher_head_.to(dtype); }));
      break;
    }
    SH_ASSIGN_OR_RETURN(model_, MakePlannedStudent(context_.shape.config, state_->Weights(), loss,
                                                   context_.student.micro_batch));
    stepper_ = std::make_unique<Stepper>(context_.student, context_.terms, *model_, *zero2_);
    cursor_ = std::make_unique<DataCursor>(context_.plan, context_.student.seed, progress_.data);
    PrefetchOptions options;
    options.teacher = context_.spec.teacher;
    options.sections = context_.sections;
    options.read_ahead_rows = kReadAheadSteps * step_rows() / static_cast<uint64_t>(group_.ranks());
    SetLoader(&loader_, options,
              StepDocuments(context_.plan, *cursor_, steps() - progress_.step, step_rows(),
                            group_.rank(), group_.ranks()));
    return absl::OkStatus();
  }

  void SetLoader(std::unique_ptr<Prefetcher>* place, PrefetchOptions options, DocumentList next) {
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

  absl::StatusOr<std::string> Resume() {
    const std::string& committed = context_.spec.checkpoint;
    if (committed.empty()) return std::string();
    const bool gone = group_.leads() && !checkpoints_.FolderExists();
    SH_ASSIGN_OR_RETURN(const std::string said,
                        group_.FromLeader(absl::StatusOr<std::string>(gone ? "removed" : "there")));
    if (said == "removed") {
      LogWarning(checkpoints_.folder(), " was removed: this run is trained from its start");
      return std::string();
    }
    const auto found = checkpoints_.ReadNewest(committed, RulesOf(context_), state_.get(), group_);
    if (group_.lost()) return found.status();
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
      SH_RETURN_IF_ERROR(TrainStep());
      if (IsDue(context_.student.evaluate_every)) SH_RETURN_IF_ERROR(Evaluate());
      if (IsDue(context_.student.checkpoint_every)) SH_RETURN_IF_ERROR(SaveCheckpoint());
    }
    if (evaluated_step_ != progress_.step || progress_.evaluations == 0) {
      SH_RETURN_IF_ERROR(Evaluate());
    }
    SH_RETURN_IF_ERROR(group_.Agree(trouble_));
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

  // What this rank would leave for.
  absl::Status WhyStop() {
    SH_RETURN_IF_ERROR(trouble_);
    SH_RETURN_IF_ERROR(CheckStop(services_));
    absl::Status interrupted;
    RunOnExecutor(services_.executor, [&] { interrupted = interrupted_; });
    return interrupted;
  }

  absl::StatusOr<std::vector<DocumentTargets>> Take(std::unique_ptr<Prefetcher>& loader,
                                                    size_t count, double* waited_s) {
    const absl::Duration before = Now();
    auto taken =
        TakeTogether(group_, services_.executor, *loader, count, [this] { return WhyStop(); });
    *waited_s = absl::ToDoubleSeconds(Now() - before);
    progress_.waited_s += *waited_s;
    return taken;
  }

  absl::Status TrainStep() {
    // Moved on only once the step is made, so that a checkpoint never skips documents.
    DataCursor after = *cursor_;
    const StepSplit split = SplitStep(*context_.plan, TakeStep(*context_.plan, after, step_rows()),
                                      group_.ranks(), micro_rows(), context_.student.packing);
    const std::vector<uint32_t>& mine = split.documents[static_cast<size_t>(group_.rank())];
    double waited_s = 0;
    SH_ASSIGN_OR_RETURN(const auto data, Take(loader_, mine.size(), &waited_s));
    SH_CHECK(data.size() == mine.size());
    for (size_t i = 0; i < data.size(); ++i) SH_CHECK(data[i].document == mine[i]);
    SetPhase("training");
    const absl::Duration before = Now();
    SkippedSteps skipped = progress_.skipped;
    absl::StatusOr<StepMetrics> made = stepper_->Step(
        *context_.plan, data, split, progress_.step + 1, &skipped, [this]() -> absl::Status {
          // Of several ranks none leaves a step alone.
          return group_.ranks() == 1 ? CheckStop(services_) : absl::OkStatus();
        });
    // That too many steps were skipped every rank finds out by itself.
    if (!made.ok() && StopOf(made.status()) == RunStop::kDiverged)
      return group_.Agree(made.status());
    SH_RETURN_IF_ERROR(Checked(made.status()));
    NoteStep(*made, skipped, after.position(), waited_s, absl::ToDoubleSeconds(Now() - before));
    *cursor_ = after;
    return absl::OkStatus();
  }

  void NoteStep(StepMetrics metrics, const SkippedSteps& skipped, DataPosition position,
                double waited_s, double seconds) {
    metrics.waited_s = waited_s;
    metrics.rows_per_s = seconds > 0 ? static_cast<double>(metrics.rows) / seconds : 0;
    progress_.step += 1;
    progress_.data = position;
    progress_.skipped = skipped;
    services_.executor.Post(
        [loader = loader_.get(), rate = metrics.rows_per_s] { loader->SetRate(rate); });
    Tell([&](RunReport& report) {
      if (!metrics.skipped) report.loss = metrics.loss;
      report.rows_per_s = metrics.rows_per_s;
    });
    UpdateTimes();
    if (metrics_.has_value() && trouble_.ok()) trouble_ = metrics_->Add(metrics);
    if (std::exchange(told_of_memory_, true)) return;
    LogInfo("rank ", group_.rank(), " of ", group_.ranks(), ": ", zero2_->memory().Describe());
  }

  // Every rank evaluates some of the held-out documents; all come to the same numbers.
  absl::Status Evaluate() {
    evaluated_step_ = progress_.step;
    if (context_.held_out_sections.empty()) {
      if (progress_.evaluations == 0) LogWarning("no held-out documents: nothing to evaluate on");
      return absl::OkStatus();
    }
    SH_RETURN_IF_ERROR(Checked(zero2_->AwaitAllWeights()));
    SetPhase("evaluating");
    const std::vector<uint32_t> all = HeldOutDocuments(*context_.plan);
    const auto dealt = DealDocuments(*context_.plan, all, group_.ranks());
    const std::vector<uint32_t>& mine = dealt[static_cast<size_t>(group_.rank())];
    size_t most = 0;
    for (const std::vector<uint32_t>& documents : dealt) most = std::max(most, documents.size());
    PrefetchOptions options;
    options.teacher = context_.spec.teacher;
    options.sections = context_.held_out_sections;
    SetLoader(&held_out_loader_, options, ListOf(mine));
    std::optional<Evaluator> evaluator;
    for (size_t begin = 0; begin < most; begin += kHeldOutBatch) {
      const size_t count = std::min(kHeldOutBatch, mine.size() - std::min(mine.size(), begin));
      double waited_s = 0;
      SH_ASSIGN_OR_RETURN(const auto taken, Take(held_out_loader_, count, &waited_s));
      SetPhase("evaluating");
      trouble_ = EvaluateBatch(taken, &evaluator);
    }
    SH_RETURN_IF_ERROR(group_.Agree(trouble_));
    SH_CHECK(evaluator.has_value());
    std::vector<double> values = evaluator->ValuesOf(all);
    SH_RETURN_IF_ERROR(group_.Sum(absl::MakeSpan(values)));
    evaluator->SetValues(all, values);
    const Evaluation evaluation = evaluator->Finish(progress_.step);
    if (evaluation.rows == 0) {
      LogWarning("the loss mask leaves no row of the held-out documents: nothing to evaluate on");
      return absl::OkStatus();
    }
    NoteEvaluation(evaluation);
    return absl::OkStatus();
  }

  absl::Status EvaluateBatch(absl::Span<const DocumentTargets> documents,
                             std::optional<Evaluator>* evaluator) {
    if (!evaluator->has_value()) {
      SH_RETURN_IF_ERROR(LoadTeacherHead());
      evaluator->emplace(*model_, teacher_head_, context_.plan->vocabulary());
    }
    return (*evaluator)->AddInBatches(*context_.plan, documents, micro_rows());
  }

  void NoteEvaluation(const Evaluation& evaluation) {
    if (group_.leads()) {
      LogInfo("step ", evaluation.step, ": perplexity ", evaluation.perplexity, " (teacher ",
              evaluation.teacher_perplexity, "), KL ", evaluation.kl, " ± ", evaluation.kl_se,
              ", agreement ", evaluation.agreement);
    }
    progress_.NoteEvaluation(QualityOf(context_.terms, evaluation));
    if (reporter_ == nullptr) return;
    reporter_->Update([&](RunReport& report) {
      report.has_evaluation = true;
      report.evaluation = evaluation;
    });
    UpdateTimes();
    const absl::Status reported = reporter_->Flush();
    if (!reported.ok()) LogWarning("evaluation not reported: ", reported.message());
    trouble_ = metrics_->Add(evaluation);
  }

  absl::Status SaveCheckpoint() {
    if (saved_step_ == progress_.step) return absl::OkStatus();
    progress_.seconds = Seconds();
    SH_ASSIGN_OR_RETURN(const std::string name,
                        checkpoints_.Write(progress_, *state_, context_.spec.run_epoch, group_));
    SH_RETURN_IF_ERROR(group_.FromLeader(group_.leads() ? Commit(name) : absl::OkStatus()));
    saved_step_ = progress_.step;
    return absl::OkStatus();
  }

  absl::Status Commit(const std::string& name) {
    const absl::Status committed =
        CallAndWait<bool>(services_.executor, [&](auto done) {
          services_.run.CommitCheckpoint(progress_.step, name, std::move(done));
        }).status();
    if (absl::IsAborted(committed)) {
      return StopStatus(RunStop::kSuperseded, committed.message());
    }
    SH_RETURN_IF_ERROR_AT(committed, "committing a checkpoint");
    return checkpoints_.Prune(name, static_cast<size_t>(context_.student.checkpoint_keep));
  }

  absl::Status Export() {
    SH_ASSIGN_OR_RETURN(const std::string folder, ExportStudent(context_, *state_));
    LogInfo("exported to ", folder);
    Tell([&](RunReport& report) {
      report.phase = "finished";
      report.exported_to = folder;
    });
    UpdateTimes();
    return Annotate(reporter_->Flush(), "telling the coordinator that the run has finished");
  }

  // Saves what a later start can use, and passes `why` on. A rank that leaves alone cannot.
  absl::Status LeaveEarly(const absl::Status& why) {
    const RunStop stop = StopOf(why);
    if (stop == RunStop::kCancelled || stop == RunStop::kSuperseded || stop == RunStop::kDiverged ||
        stop == RunStop::kFailed || !group_.HasAgreedOn(why)) {
      return why;
    }
    const absl::Status saved = SaveCheckpoint();
    if (!saved.ok()) LogError("could not save: ", saved.message());
    return why;
  }

  const RunContext context_;
  const Services services_;
  RankGroup& group_;
  Reporter* const reporter_;
  std::vector<std::unique_ptr<Communicator>> alone_;
  const std::shared_ptr<StudentState> state_;  // outlives the run where a rank was lost
  std::unique_ptr<Zero2> zero2_;
  CheckpointStore checkpoints_;
  std::optional<MetricsLog> metrics_;  // of the first rank
  std::unique_ptr<StudentModel> model_;
  std::unique_ptr<Stepper> stepper_;
  std::unique_ptr<DataCursor> cursor_;
  at::Tensor teacher_head_;  // fp32, once needed
  RunProgress progress_;
  absl::Status trouble_;  // of this rank; the others hear of it at the next vote
  uint64_t saved_step_ = 0;
  uint64_t evaluated_step_ = 0;
  bool told_of_memory_ = false;
  double seconds_before_ = 0;  // of earlier starts
  const absl::Duration started_;
  // Executor only.
  std::unique_ptr<Prefetcher> loader_, held_out_loader_;
  absl::Status interrupted_;
};

}  // namespace

absl::Status TrainStudent(const RunSpec& spec, const Services& services,
                          const TrainerOptions& options) {
  RankGroup group(services.communicator);
  // Set and cleared on the executor, where the reporter reads it.
  Run* running = nullptr;
  absl::Status cancelled;
  uint64_t step = 0;
  absl::Status status;
  std::optional<Reporter> reporter;
  if (group.leads()) {
    reporter.emplace(services.executor, services.run, options.report_every, [&](absl::Status why) {
      cancelled = why;
      if (running != nullptr) running->Interrupt(why);
    });
    reporter->Update([](RunReport& report) { report.phase = "loading"; });
  }
  status = [&]() -> absl::Status {
    SH_ASSIGN_OR_RETURN(RunContext context,
                        PrepareRun(spec, services, group, [&](absl::string_view what) {
                          if (!what.empty()) LogInfo(what);
                          if (!reporter.has_value()) return;
                          reporter->Update([&](RunReport& r) { r.message = std::string(what); });
                        }));
    Run run(std::move(context), services, group, reporter.has_value() ? &*reporter : nullptr);
    RunOnExecutor(services.executor, [&] {
      running = &run;
      if (!cancelled.ok()) run.Interrupt(cancelled);
    });
    const StopWatcher watcher(services, [&](absl::Status why) { run.Interrupt(why); });
    const absl::Status executed = run.Execute();
    if (!executed.ok() && !group.HasAgreedOn(executed)) group.GiveUp();
    RunOnExecutor(services.executor, [&] { running = nullptr; });
    step = run.step();
    return executed;
  }();
  status = SupersededIfAborted(status);
  if (!group.leads()) return status;
  if (!status.ok() && StopOf(status) != RunStop::kSuperseded) {
    const RunStop stop = StopOf(status);
    const bool failed = stop != RunStop::kTerminated && stop != RunStop::kRankLost;
    reporter->Update([&](RunReport& report) {
      if (failed) report.phase = "failed";
      report.message = std::string(status.message());
    });
    reporter->Flush().IgnoreError();  // the exit file says the same
  }
  reporter.reset();
  const absl::Status written = WriteExitFile(spec.run_folder, status, step);
  if (!written.ok()) LogError(written.message());
  return status;
}

}  // namespace stillhouse

#include "worker/run_client.h"

#include <unistd.h>

#include <utility>

#include "common/status.h"
#include "common/utf8.h"
#include "proto/control.pb.h"
#include "transport/rpc.h"
#include "worker/proto_call.h"

namespace stillhouse {
namespace {

// A coordinator that restarts is back within seconds; one silent for this long is not coming back.
constexpr absl::Duration kCoordinatorSilenceMax = absl::Minutes(10);
constexpr size_t kMessageBytesMax = 4000;  // of a report; the coordinator keeps less
constexpr RpcClient::CallOptions kPatient = {.deadline = kCoordinatorSilenceMax};

std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 ? CleanUtf8(name) : "unknown";
}

absl::StatusOr<RunSpec> FromProto(const pb::StartRunResponse& response) {
  RunSpec spec;
  spec.recipe_path = response.recipe_path();
  spec.recipe_text = response.recipe_text();
  spec.student = response.student();
  SH_ASSIGN_OR_RETURN_AT(spec.plan, DigestFromBytes(response.plan()), "the plan of a run");
  SH_ASSIGN_OR_RETURN_AT(spec.teacher, DigestFromBytes(response.teacher()), "the teacher of a run");
  spec.run_epoch = response.run_epoch();
  spec.run_folder = response.run_folder();
  spec.checkpoint = response.checkpoint();
  spec.cache_address = response.cache_address();
  spec.sections.assign(response.sections().begin(), response.sections().end());
  spec.held_out_sections.assign(response.held_out_sections().begin(),
                                response.held_out_sections().end());
  return spec;
}

ChunkAvailability FromProto(pb::ChunkState state) {
  switch (state) {
    case pb::DURABLE:
      return ChunkAvailability::kDurable;
    case pb::POISONED:
      return ChunkAvailability::kPoisoned;
    case pb::NEEDS_TEACHER:
      return ChunkAvailability::kNeedsTeacher;
    case pb::EXCLUDED:
      return ChunkAvailability::kExcluded;
    case pb::LOST:
      return ChunkAvailability::kLost;
    default:
      return ChunkAvailability::kPending;
  }
}

void ToProto(const Evaluation& evaluation, pb::EvaluationReport* out) {
  out->set_step(evaluation.step);
  out->set_rows(evaluation.rows);
  out->set_perplexity(evaluation.perplexity);
  out->set_kl(evaluation.kl);
  out->set_kl_se(evaluation.kl_se);
  out->set_jsd(evaluation.jsd);
  out->set_jsd_se(evaluation.jsd_se);
  out->set_agreement(evaluation.agreement);
  out->set_agreement_se(evaluation.agreement_se);
  out->set_teacher_perplexity(evaluation.teacher_perplexity);
}

class RunClientImpl final : public RunClient {
 public:
  RunClientImpl(RpcClient& rpc, std::string run, uint64_t incarnation)
      : rpc_(rpc), run_(std::move(run)), incarnation_(incarnation) {}

  void Start(Callback<RunSpec> done) override {
    pb::StartRunRequest request;
    request.set_run(run_);
    request.set_incarnation(incarnation_);
    request.set_host(HostName());
    request.set_pid(getpid());
    CallProto<pb::StartRunResponse>(rpc_, "control.StartRun", request, kPatient,
                                    [epoch = epoch_, done = std::move(done)](
                                        absl::StatusOr<pb::StartRunResponse> response) mutable {
                                      if (!response.ok()) {
                                        done(response.status());
                                        return;
                                      }
                                      *epoch = response->run_epoch();
                                      done(FromProto(*response));
                                    });
  }

  void Want(std::vector<WantItem> items, Callback<WantAnswer> done) override {
    pb::WantRequest request;
    request.set_run(run_);
    request.set_run_epoch(*epoch_);
    for (const WantItem& item : items) {
      pb::WantRequest::Item* out = request.add_items();
      out->set_chunk(item.chunk);
      out->set_within_ms(absl::ToInt64Milliseconds(item.within));
    }
    CallProto<pb::WantResponse>(
        rpc_, "control.Want", request, kPatient,
        [asked = items.size(),
         done = std::move(done)](absl::StatusOr<pb::WantResponse> response) mutable {
          if (!response.ok()) {
            done(response.status());
            return;
          }
          WantAnswer answer;
          answer.retry = absl::Milliseconds(response->retry_ms());
          answer.cancelled = response->cancelled();
          for (const int state : response->states()) {
            answer.states.push_back(FromProto(static_cast<pb::ChunkState>(state)));
          }
          if (!answer.cancelled && answer.states.size() != asked) {
            done(absl::DataLossError(absl::StrCat("control.Want: asked for ", asked,
                                                  " chunks, answered ", answer.states.size())));
            return;
          }
          done(std::move(answer));
        });
  }

  void Report(RunReport report, Callback<bool> done) override {
    pb::ReportRequest request;
    request.set_run(run_);
    request.set_run_epoch(*epoch_);
    request.set_phase(report.phase);
    request.set_step(report.step);
    request.set_steps(report.steps);
    request.set_loss(report.loss);
    request.set_rows_per_s(report.rows_per_s);
    request.set_waited_s(report.waited_s);
    request.set_seconds(report.seconds);
    request.set_message(CleanUtf8(report.message, kMessageBytesMax));
    request.set_parameters(report.parameters);
    request.set_exported_to(CleanUtf8(report.exported_to));
    if (report.has_evaluation) ToProto(report.evaluation, request.mutable_evaluation());
    CallProto<pb::ReportResponse>(
        rpc_, "control.Report", request, kPatient,
        [done = std::move(done)](absl::StatusOr<pb::ReportResponse> response) mutable {
          if (!response.ok()) {
            done(response.status());
            return;
          }
          done(response->cancelled());
        });
  }

  void CommitCheckpoint(uint64_t step, std::string folder, Callback<bool> done) override {
    pb::CommitCheckpointRequest request;
    request.set_run(run_);
    request.set_run_epoch(*epoch_);
    request.set_step(step);
    request.set_folder(std::move(folder));
    CallProto<pb::CommitCheckpointResponse>(
        rpc_, "control.CommitCheckpoint", request, kPatient,
        [done = std::move(done)](absl::StatusOr<pb::CommitCheckpointResponse> response) mutable {
          if (!response.ok()) {
            done(response.status());
            return;
          }
          done(true);
        });
  }

 private:
  RpcClient& rpc_;
  const std::string run_;
  const uint64_t incarnation_;
  // Shared with the callback of Start, which may come after the client has gone.
  const std::shared_ptr<uint64_t> epoch_ = std::make_shared<uint64_t>(0);
};

}  // namespace

std::unique_ptr<RunClient> MakeRunClient(RpcClient& rpc, std::string run, uint64_t incarnation) {
  return std::make_unique<RunClientImpl>(rpc, std::move(run), incarnation);
}

}  // namespace stillhouse

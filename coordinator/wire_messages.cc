#include "coordinator/wire_messages.h"

#include "proto/control.pb.h"

namespace stillhouse {

RunEvaluation FromProto(const pb::EvaluationReport& report) {
  RunEvaluation evaluation;
  evaluation.step = report.step();
  evaluation.rows = report.rows();
  evaluation.perplexity = report.perplexity();
  evaluation.kl = report.kl();
  evaluation.kl_se = report.kl_se();
  evaluation.jsd = report.jsd();
  evaluation.jsd_se = report.jsd_se();
  evaluation.agreement = report.agreement();
  evaluation.agreement_se = report.agreement_se();
  evaluation.teacher_perplexity = report.teacher_perplexity();
  return evaluation;
}

void ToProto(const RunEvaluation& evaluation, pb::EvaluationReport* out) {
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

RunProgress FromProto(const pb::ReportRequest& request) {
  RunProgress progress;
  progress.phase = request.phase();
  progress.step = request.step();
  progress.steps = request.steps();
  progress.loss = request.loss();
  progress.rows_per_s = request.rows_per_s();
  progress.waited_s = request.waited_s();
  progress.seconds = request.seconds();
  progress.message = request.message();
  if (request.has_evaluation()) progress.evaluation = FromProto(request.evaluation());
  progress.parameters = request.parameters();
  progress.exported_to = request.exported_to();
  return progress;
}

void ToProto(const RunProgress& progress, pb::ReportRequest* out) {
  out->set_phase(progress.phase);
  out->set_step(progress.step);
  out->set_steps(progress.steps);
  out->set_loss(progress.loss);
  out->set_rows_per_s(progress.rows_per_s);
  out->set_waited_s(progress.waited_s);
  out->set_seconds(progress.seconds);
  out->set_message(progress.message);
  if (progress.evaluation.has_value()) ToProto(*progress.evaluation, out->mutable_evaluation());
  out->set_parameters(progress.parameters);
  out->set_exported_to(progress.exported_to);
}

}  // namespace stillhouse

#include "coordinator/journal_messages.h"

#include <utility>
#include <vector>

#include "common/status.h"
#include "common/utf8.h"
#include "proto/journal.pb.h"

namespace stillhouse {
namespace {

template <typename Message>
absl::Status Parse(absl::string_view body, Message* message) {
  if (message->ParseFromArray(body.data(), static_cast<int>(body.size()))) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("not a ", message->GetTypeName()));
}

// Leased and confirming are volatile: after a restart they are found out again.
ChunkState Journaled(ChunkState state) {
  return state == ChunkState::kDurable || state == ChunkState::kPoisoned ? state
                                                                         : ChunkState::kPending;
}

void ToProto(const RunEvaluation& in, pb::JournalRun::Evaluation* out) {
  out->set_step(in.step);
  out->set_rows(in.rows);
  out->set_perplexity(in.perplexity);
  out->set_kl(in.kl);
  out->set_kl_se(in.kl_se);
  out->set_jsd(in.jsd);
  out->set_jsd_se(in.jsd_se);
  out->set_agreement(in.agreement);
  out->set_agreement_se(in.agreement_se);
  out->set_teacher_perplexity(in.teacher_perplexity);
}

RunEvaluation FromProto(const pb::JournalRun::Evaluation& in) {
  RunEvaluation out;
  out.step = in.step();
  out.rows = in.rows();
  out.perplexity = in.perplexity();
  out.kl = in.kl();
  out.kl_se = in.kl_se();
  out.jsd = in.jsd();
  out.jsd_se = in.jsd_se();
  out.agreement = in.agreement();
  out.agreement_se = in.agreement_se();
  out.teacher_perplexity = in.teacher_perplexity();
  return out;
}

void ToProto(const RunProgress& in, pb::JournalRun::Progress* out) {
  out->set_phase(in.phase);
  out->set_step(in.step);
  out->set_steps(in.steps);
  out->set_loss(in.loss);
  out->set_rows_per_s(in.rows_per_s);
  out->set_waited_s(in.waited_s);
  out->set_seconds(in.seconds);
  out->set_message(in.message);
  if (in.evaluation.has_value()) ToProto(*in.evaluation, out->mutable_evaluation());
  out->set_parameters(in.parameters);
  out->set_exported_to(in.exported_to);
}

RunProgress FromProto(const pb::JournalRun::Progress& in) {
  RunProgress out;
  out.phase = in.phase();
  out.step = in.step();
  out.steps = in.steps();
  out.loss = in.loss();
  out.rows_per_s = in.rows_per_s();
  out.waited_s = in.waited_s();
  out.seconds = in.seconds();
  out.message = CleanUtf8(in.message());
  if (in.has_evaluation()) out.evaluation = FromProto(in.evaluation());
  out.parameters = in.parameters();
  out.exported_to = CleanUtf8(in.exported_to());
  return out;
}

}  // namespace

std::string EncodeMeta(uint64_t incarnation) {
  pb::JournalMeta meta;
  meta.set_incarnation(incarnation);
  return meta.SerializeAsString();
}

absl::Status DecodeMeta(absl::string_view body, uint64_t* incarnation) {
  pb::JournalMeta meta;
  SH_RETURN_IF_ERROR(Parse(body, &meta));
  *incarnation = meta.incarnation();
  return absl::OkStatus();
}

std::string EncodeJob(const Job& job) {
  pb::JournalJob out;
  out.set_name(job.name);
  out.set_recipe_path(job.recipe_path);
  out.set_recipe_text(job.recipe_text);
  out.set_plan(std::string(job.capture.plan.AsStringView()));
  out.set_teacher(std::string(job.capture.teacher.AsStringView()));
  out.set_teacher_dtype(job.capture.teacher_dtype);
  for (const std::string& spec : job.capture.sections) out.add_sections(spec);
  for (const std::string& spec : job.capture.held_out_sections) out.add_held_out_sections(spec);
  for (const std::string& name : job.capture.first_chunk_artefacts) {
    out.add_first_chunk_artefacts(name);
  }
  for (uint32_t i = 0; i < job.chunks.size(); ++i) {
    const ChunkSpec& spec = job.chunks.at(i).spec;
    out.add_chunk_rows(spec.rows);
    if (spec.held_out) out.add_held_out_chunks(i);
  }
  if (job.retention.bytes_max > 0) {
    out.set_cache_bytes_max(job.retention.bytes_max);
    for (const ChunkSpec& spec : job.chunks.specs()) out.add_chunk_bytes_max(spec.bytes_max);
  }
  for (const std::string& run : job.runs) out.add_runs(run);
  out.set_payer(job.payer);
  out.set_submit_key(job.submit_key);
  out.set_submit_resumed(job.submit_resumed);
  return out.SerializeAsString();
}

absl::Status DecodeJob(absl::string_view body, Job* job) {
  pb::JournalJob in;
  SH_RETURN_IF_ERROR(Parse(body, &in));
  job->name = in.name();
  job->recipe_path = in.recipe_path();
  job->recipe_text = in.recipe_text();
  absl::StatusOr<Digest> plan = DigestFromBytes(in.plan());
  absl::StatusOr<Digest> teacher = DigestFromBytes(in.teacher());
  if (!plan.ok() || !teacher.ok()) return absl::DataLossError("plan or teacher is no digest");
  job->capture.plan = *plan;
  job->capture.teacher = *teacher;
  job->capture.teacher_dtype = in.teacher_dtype();
  job->capture.sections.assign(in.sections().begin(), in.sections().end());
  job->capture.held_out_sections.assign(in.held_out_sections().begin(),
                                        in.held_out_sections().end());
  job->capture.first_chunk_artefacts.assign(in.first_chunk_artefacts().begin(),
                                            in.first_chunk_artefacts().end());
  std::vector<ChunkSpec> specs;
  for (const uint64_t rows : in.chunk_rows()) specs.push_back({rows, false});
  for (const uint32_t index : in.held_out_chunks()) {
    if (index >= specs.size()) return absl::DataLossError("a held-out chunk beyond the last");
    specs[index].held_out = true;
  }
  if (specs.empty()) return absl::DataLossError("a job without chunks");
  job->retention.bytes_max = in.cache_bytes_max();
  const size_t sized = job->retention.bytes_max > 0 ? specs.size() : 0;
  if (static_cast<size_t>(in.chunk_bytes_max_size()) != sized) {
    return absl::DataLossError("not one size for each chunk");
  }
  for (size_t i = 0; i < sized; ++i) {
    specs[i].bytes_max = in.chunk_bytes_max(static_cast<int>(i));
  }
  job->chunks = ChunkTable(specs);
  job->runs.assign(in.runs().begin(), in.runs().end());
  job->payer = in.payer();
  job->submit_key = in.submit_key();
  job->submit_resumed = in.submit_resumed();
  return absl::OkStatus();
}

std::string EncodeJobState(const Job& job) {
  pb::JournalJobState out;
  out.set_phase(static_cast<uint32_t>(job.phase));
  out.set_problem(job.problem);
  out.set_rows_computed(job.rows_computed);
  out.set_parts_mismatched(job.parts_mismatched);
  out.set_capture_seconds(job.capture_seconds);
  out.set_baseline(job.baseline);
  return out.SerializeAsString();
}

absl::Status DecodeJobState(absl::string_view body, Job* job) {
  pb::JournalJobState in;
  SH_RETURN_IF_ERROR(Parse(body, &in));
  if (in.phase() > static_cast<uint32_t>(JobPhase::kCancelled)) {
    return absl::DataLossError(absl::StrCat("no phase ", in.phase()));
  }
  job->phase = static_cast<JobPhase>(in.phase());
  job->problem = CleanUtf8(in.problem());
  job->rows_computed = in.rows_computed();
  job->parts_mismatched = in.parts_mismatched();
  job->capture_seconds = in.capture_seconds();
  job->baseline = in.baseline();
  return absl::OkStatus();
}

std::string EncodeChunk(const Chunk& chunk) {
  pb::JournalChunk out;
  out.set_state(static_cast<uint32_t>(Journaled(chunk.state)));
  for (const ChunkFailure& failure : chunk.failures) {
    pb::JournalChunk::Failure* row = out.add_failures();
    row->set_worker(failure.worker.name);
    row->set_incarnation(failure.worker.incarnation);
    row->set_reason(failure.reason);
  }
  for (const ChunkCharge& charge : chunk.charges) {
    pb::JournalChunk::Charge* row = out.add_charges();
    row->set_epoch(charge.epoch);
    row->set_rows(charge.rows);
  }
  return out.SerializeAsString();
}

absl::Status DecodeChunk(absl::string_view body, uint32_t index, ChunkTable* chunks) {
  pb::JournalChunk in;
  SH_RETURN_IF_ERROR(Parse(body, &in));
  if (in.state() > static_cast<uint32_t>(ChunkState::kPoisoned) ||
      Journaled(static_cast<ChunkState>(in.state())) != static_cast<ChunkState>(in.state())) {
    return absl::DataLossError(absl::StrCat("no chunk is kept in state ", in.state()));
  }
  std::vector<ChunkFailure> failures;
  for (const auto& row : in.failures()) {
    failures.push_back({{row.worker(), row.incarnation()}, CleanUtf8(row.reason())});
  }
  std::vector<ChunkCharge> charges;
  for (const auto& row : in.charges()) charges.push_back({row.epoch(), row.rows()});
  chunks->Restore(index, static_cast<ChunkState>(in.state()), std::move(failures),
                  std::move(charges));
  return absl::OkStatus();
}

std::string EncodeRun(const Run& run) {
  pb::JournalRun out;
  out.set_name(run.setup.name);
  out.set_student(run.setup.student);
  out.set_folder(run.setup.folder);
  out.set_hash(run.setup.hash);
  out.set_steps(run.setup.steps);
  out.set_job(run.job);
  out.set_phase(static_cast<uint32_t>(run.phase));
  out.set_epoch(run.epoch);
  out.set_incarnation(run.incarnation);
  for (const uint64_t past : run.past_incarnations) out.add_past_incarnations(past);
  out.set_checkpoint(run.checkpoint);
  out.set_checkpoint_step(run.checkpoint_step);
  out.set_checkpoint_epoch(run.checkpoint_epoch);
  out.set_teacher_rows_charged(run.teacher_rows_charged);
  if (run.best.has_value()) ToProto(*run.best, out.mutable_best());
  if (run.final.has_value()) ToProto(*run.final, out.mutable_final());
  ToProto(run.last, out.mutable_last());
  return out.SerializeAsString();
}

absl::Status DecodeRun(absl::string_view body, Run* run) {
  pb::JournalRun in;
  SH_RETURN_IF_ERROR(Parse(body, &in));
  if (in.phase() > static_cast<uint32_t>(RunPhase::kCancelled)) {
    return absl::DataLossError(absl::StrCat("no phase ", in.phase()));
  }
  run->setup = {in.name(), in.student(), in.folder(), in.hash(), in.steps()};
  run->job = in.job();
  run->phase = static_cast<RunPhase>(in.phase());
  run->epoch = in.epoch();
  run->incarnation = in.incarnation();
  run->past_incarnations.assign(in.past_incarnations().begin(), in.past_incarnations().end());
  run->checkpoint = in.checkpoint();
  run->checkpoint_step = in.checkpoint_step();
  run->checkpoint_epoch = in.checkpoint_epoch();
  run->teacher_rows_charged = in.teacher_rows_charged();
  if (in.has_best()) run->best = FromProto(in.best());
  if (in.has_final()) run->final = FromProto(in.final());
  run->last = FromProto(in.last());
  return absl::OkStatus();
}

std::string EncodeQuarantine(const Worker& worker) {
  pb::JournalQuarantine out;
  out.set_worker(worker.ref.name);
  out.set_incarnation(worker.ref.incarnation);
  out.set_reason(worker.leave);
  return out.SerializeAsString();
}

absl::Status DecodeQuarantine(absl::string_view body, Worker* worker) {
  pb::JournalQuarantine in;
  SH_RETURN_IF_ERROR(Parse(body, &in));
  worker->ref = {in.worker(), in.incarnation()};
  worker->leave = CleanUtf8(in.reason());
  return absl::OkStatus();
}

}  // namespace stillhouse

#include "student/metrics_log.h"

#include <fcntl.h>
#include <unistd.h>

#include "absl/strings/str_split.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/json.h"

namespace stillhouse {
namespace {

std::string TermName(const LossTerm& term) {
  switch (term.kind) {
    case LossKind::kCrossEntropy:
      return "cross_entropy";
    case LossKind::kSampledKl:
      return "kl_sampled";
    case LossKind::kTopKl:
      return "kl_top";
    case LossKind::kExactKl:
      return term.temperature == 1.0 ? "kl" : absl::StrCat("kl_at_", term.temperature);
  }
  return "";
}

// Whether a line is whole and of a step that counts.
bool IsKept(absl::string_view line, uint64_t resumed_step) {
  const Json json = Json::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
  return json.is_object() && json.contains("step") && json["step"].is_number_unsigned() &&
         json["step"].get<uint64_t>() <= resumed_step;
}

}  // namespace

absl::StatusOr<MetricsLog> MetricsLog::Open(const std::string& run_folder, uint64_t resumed_step,
                                            const std::vector<LossTerm>& terms) {
  MetricsLog log;
  log.path_ = JoinPath(run_folder, "metrics.jsonl");
  for (const LossTerm& term : terms) log.names_.push_back(TermName(term));
  std::string kept;
  if (PathExists(log.path_)) {
    SH_ASSIGN_OR_RETURN(const std::string text, ReadFile(log.path_));
    for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
      if (IsKept(line, resumed_step)) absl::StrAppend(&kept, line, "\n");
    }
  }
  SH_RETURN_IF_ERROR(WriteFileAtomically(log.path_, kept));
  return log;
}

absl::Status MetricsLog::Add(const StepMetrics& metrics) {
  OrderedJson json;
  json["step"] = metrics.step;
  json["loss"] = metrics.loss;
  for (size_t k = 0; k < names_.size(); ++k) json[names_[k]] = metrics.parts[k];
  json["lr"] = metrics.learning_rate;
  json["grad_norm"] = metrics.gradient_norm;
  json["rows"] = metrics.rows;
  json["counted_rows"] = metrics.counted_rows;
  json["rows_per_s"] = metrics.rows_per_s;
  json["waited_s"] = metrics.waited_s;
  if (metrics.skipped) json["skipped"] = true;
  return Append(json.dump());
}

absl::Status MetricsLog::Add(const Evaluation& evaluation) {
  OrderedJson json;
  json["step"] = evaluation.step;
  json["evaluation"] = {{"rows", evaluation.rows},
                        {"perplexity", evaluation.perplexity},
                        {"kl", evaluation.kl},
                        {"kl_se", evaluation.kl_se},
                        {"jsd", evaluation.jsd},
                        {"jsd_se", evaluation.jsd_se},
                        {"agreement", evaluation.agreement},
                        {"agreement_se", evaluation.agreement_se},
                        {"teacher_perplexity", evaluation.teacher_perplexity}};
  return Append(json.dump());
}

absl::Status MetricsLog::Append(const std::string& line) {
  const int fd = open(path_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
  if (fd < 0) return ErrnoStatus("opening", path_);
  const std::string text = line + "\n";
  const ssize_t wrote = write(fd, text.data(), text.size());
  const absl::Status status = wrote == static_cast<ssize_t>(text.size())
                                  ? absl::OkStatus()
                                  : ErrnoStatus("appending to", path_);
  close(fd);
  return status;
}

}  // namespace stillhouse

#include "student/losses/row_loss.h"

namespace stillhouse::internal {
namespace {

// The student's softmax at one temperature, unnormalised.
struct Softmax {
  double sum = 0;
  double logsumexp = 0;  // of logits / temperature
};

Softmax Exponentiate(const float* logits, size_t n, float largest, double temperature, float* out) {
  Softmax result;
  const auto scale = static_cast<float>(1 / temperature);
  result.sum = ExpRow(logits, n, largest, scale, out);
  result.logsumexp = static_cast<double>(largest) / temperature + std::log(result.sum);
  return result;
}

// Adds `factor` · row to the gradient, or writes it where nothing was written yet.
void AddToGradient(const float* row, size_t n, double factor, float* gradient, bool* written) {
  if (*written) {
    AddScaledRow(row, n, static_cast<float>(factor), gradient);
  } else {
    ScaleRow(row, n, static_cast<float>(factor), gradient);
  }
  *written = true;
}

}  // namespace

RowScratch::RowScratch(std::vector<float>& room, size_t n) {
  const size_t stride = (n + 15) / 16 * 16;
  if (room.size() < 5 * stride) room.resize(5 * stride);
  student = room.data();
  student_exp = student + stride;
  gradient = student_exp + stride;
  teacher = gradient + stride;
  teacher_exp = teacher + stride;
}

void ComputeRow(absl::Span<const LossTerm> terms, absl::Span<const double> coefficients,
                const RowInput& input, size_t n, float student_max, float teacher_max,
                RowScratch& scratch, absl::Span<double> values) {
  double plain = 0;  // how much of softmax(z) at T = 1 the gradient takes
  bool needs_plain = false;
  for (size_t k = 0; k < terms.size(); ++k) {
    if (terms[k].temperature != 1.0) continue;
    plain += coefficients[k];
    needs_plain = true;
  }
  bool written = false;
  Softmax student;
  if (needs_plain) {
    student = Exponentiate(scratch.student, n, student_max, 1.0, scratch.student_exp);
    AddToGradient(scratch.student_exp, n, plain / student.sum, scratch.gradient, &written);
  }
  for (size_t k = 0; k < terms.size(); ++k) {
    const LossTerm& term = terms[k];
    const double coefficient = coefficients[k];
    switch (term.kind) {
      case LossKind::kCrossEntropy:
        values[k] = student.logsumexp - scratch.student[input.label];
        scratch.gradient[input.label] -= static_cast<float>(coefficient);
        break;
      case LossKind::kSampledKl: {
        double expected = 0;
        for (size_t i = 0; i < input.ids.size(); ++i) {
          const double share = static_cast<double>(input.counts[i]) / input.draws;
          expected += share * scratch.student[input.ids[i]];
          scratch.gradient[input.ids[i]] -= static_cast<float>(coefficient * share);
        }
        values[k] = student.logsumexp - expected - input.teacher_entropy;
        break;
      }
      case LossKind::kExactKl: {
        const double t = term.temperature;
        Softmax tempered = student;
        if (t != 1.0) {
          tempered = Exponentiate(scratch.student, n, student_max, t, scratch.student_exp);
          AddToGradient(scratch.student_exp, n, coefficient * t / tempered.sum, scratch.gradient,
                        &written);
        }
        const Softmax teacher =
            Exponentiate(scratch.teacher, n, teacher_max, t, scratch.teacher_exp);
        AddToGradient(scratch.teacher_exp, n, -coefficient * t / teacher.sum, scratch.gradient,
                      &written);
        const double cross =
            WeightedDifference(scratch.teacher_exp, scratch.teacher, scratch.student, n) /
            (teacher.sum * t);
        values[k] = t * t * (cross - teacher.logsumexp + tempered.logsumexp);
        break;
      }
    }
  }
}

}  // namespace stillhouse::internal

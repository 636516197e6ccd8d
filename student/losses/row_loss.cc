#include "student/losses/row_loss.h"

#include <utility>

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

// Below this share the ids outside the top ones are exponentiated around their own largest.
constexpr double kSmallShare = 1e-30;
constexpr float kNoLogit = -1e30f;  // its exponential is 0

// The softmax at T = 1 with its mass outside the row's top ids apart: from a difference it would
// lose its digits where it is small.
struct SplitSoftmax {
  Softmax all;
  double outside_logsumexp = 0;  // of the logits that are not among the top ids; if there are any
  // What a logit outside has to be multiplied with to become its share of `outside`, as it lies in
  // scratch.student_exp.
  double outside_scale = 0;
  bool around_own = false;  // those lie there around their own largest, not the row's
};

SplitSoftmax ExponentiateAroundTop(absl::Span<const int32_t> top_ids, size_t n, float largest,
                                   RowScratch& scratch) {
  SplitSoftmax split;
  const size_t k = top_ids.size();
  for (size_t i = 0; i < k; ++i) {
    scratch.top_logits[i] = std::exchange(scratch.student[top_ids[i]], kNoLogit);
  }
  double outside = ExpRow(scratch.student, n, largest, 1.0f, scratch.student_exp);
  split.all.sum = outside + ExpRow(scratch.top_logits, k, largest, 1.0f, scratch.top_exp);
  split.all.logsumexp = largest + std::log(split.all.sum);
  float shift = largest;
  if (k < n && outside < split.all.sum * kSmallShare) {
    split.around_own = true;
    shift = scratch.student[ArgMaxRow(scratch.student, n)];
    outside = ExpRow(scratch.student, n, shift, 1.0f, scratch.student_exp);
  }
  if (k < n) {
    split.outside_logsumexp = shift + std::log(outside);
    split.outside_scale = 1 / outside;
  }
  for (size_t i = 0; i < k; ++i) scratch.student[top_ids[i]] = scratch.top_logits[i];
  return split;
}

// The gradient of `plain` · logsumexp(z) and of `top` times the top-k KL, in scratch.gradient.
void WriteTopGradient(const RowInput& input, const SplitSoftmax& split, size_t n, double plain,
                      double top, RowScratch& scratch) {
  const double residual = std::exp(static_cast<double>(input.top_logprobs.back()));
  const double share = plain / split.all.sum;
  const double outside = (split.around_own ? 0 : share) - top * residual * split.outside_scale;
  ScaleRow(scratch.student_exp, n, static_cast<float>(outside), scratch.gradient);
  for (size_t i = 0; i < input.top_ids.size(); ++i) {
    const double probability = std::exp(static_cast<double>(input.top_logprobs[i]));
    scratch.gradient[input.top_ids[i]] =
        static_cast<float>(share * scratch.top_exp[i] - top * probability);
  }
}

double TopValue(const RowInput& input, const SplitSoftmax& split, size_t n, const float* logits) {
  double value = 0;
  for (size_t i = 0; i < input.top_ids.size(); ++i) {
    const double logprob = input.top_logprobs[i];
    value += std::exp(logprob) * (logprob - (logits[input.top_ids[i]] - split.all.logsumexp));
  }
  if (input.top_ids.size() == n) return value;
  const double residual = input.top_logprobs.back();
  return value + std::exp(residual) * (residual - (split.outside_logsumexp - split.all.logsumexp));
}

}  // namespace

RowScratch::RowScratch(std::vector<float>& room, size_t n) {
  const size_t stride = (n + 15) / 16 * 16;
  if (room.size() < 7 * stride) room.resize(7 * stride);
  student = room.data();
  student_exp = student + stride;
  gradient = student_exp + stride;
  teacher = gradient + stride;
  teacher_exp = teacher + stride;
  top_logits = teacher_exp + stride;
  top_exp = top_logits + stride;
}

void ComputeRow(absl::Span<const LossTerm> terms, absl::Span<const double> coefficients,
                const RowInput& input, size_t n, float student_max, float teacher_max,
                RowScratch& scratch, absl::Span<double> values) {
  double plain = 0;  // how much of softmax(z) at T = 1 the gradient takes
  double top = 0;
  bool needs_plain = false, needs_top = false;
  for (size_t k = 0; k < terms.size(); ++k) {
    if (terms[k].temperature != 1.0) continue;
    plain += coefficients[k];
    needs_plain = true;
    if (terms[k].kind != LossKind::kTopKl) continue;
    top += coefficients[k];
    needs_top = true;
  }
  bool written = false;
  Softmax student;
  SplitSoftmax split;
  if (needs_top) {
    split = ExponentiateAroundTop(input.top_ids, n, student_max, scratch);
    student = split.all;
    WriteTopGradient(input, split, n, plain, top, scratch);
    written = true;
  } else if (needs_plain) {
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
      case LossKind::kTopKl:
        values[k] = TopValue(input, split, n, scratch.student);
        break;
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

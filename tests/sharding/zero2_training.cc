#include "tests/sharding/zero2_training.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <thread>

#include "common/random.h"
#include "common/status.h"

namespace stillhouse {
namespace {

constexpr AdamWOptions kAdamW{.beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .weight_decay = 0.01};
constexpr double kLearningRate = 1e-2;

float Random(uint64_t a, uint64_t b, uint64_t c) {
  RandomStream random(DeriveSeed(a * 1000003 + b, "zero2"), c);
  return static_cast<float>(random.NextNormal());
}

struct Where {
  int step, rank, micro;
};
std::vector<float> Gradient(const Training& training, Where where, size_t parameter, int part) {
  std::vector<float> values(training.parameters[parameter].second);
  RandomStream random(DeriveSeed((where.step * 64 + where.rank) * 64 + where.micro, "gradient"),
                      parameter * 2 + part);
  for (float& value : values) value = static_cast<float>(random.NextNormal());
  if (where.rank == training.nan_rank && where.step == training.nan_step && where.micro == 0 &&
      parameter == 0) {
    values[0] = std::numeric_limits<float>::quiet_NaN();
  }
  return values;
}

bool IsTied(const Training& training, size_t parameter) {
  return training.tied && parameter + 1 == training.parameters.size();
}

float Initial(size_t flat) { return Random(7, 0, flat); }

void Contribute(const std::vector<float>& gradient, GradientPlace place) {
  for (size_t i = 0; i < gradient.size(); ++i) {
    place.data[i] = place.add ? place.data[i] + gradient[i] : gradient[i];
  }
}

absl::Status MakeGradients(const Training& training, Where where, Zero2& zero2) {
  std::vector<size_t> order(training.parameters.size());
  std::iota(order.begin(), order.end(), size_t{0});
  if (training.shuffled) {
    RandomStream random(DeriveSeed(where.rank * 100 + where.step, "order"));
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.NextBelow(i)]);
  }
  zero2.BeginMicroBatch();
  const size_t last = training.parameters.size() - 1;
  if (training.tied) {
    SH_ASSIGN_OR_RETURN(const GradientPlace place, zero2.Begin(last));
    Contribute(Gradient(training, where, last, 0), place);
  }
  for (const size_t p : order) {
    SH_RETURN_IF_ERROR(zero2.AwaitWeights(p));
    SH_ASSIGN_OR_RETURN(const GradientPlace place, zero2.Begin(p));
    if (place.data == nullptr) continue;
    Contribute(Gradient(training, where, p, IsTied(training, p) ? 1 : 0), place);
    SH_RETURN_IF_ERROR(zero2.Ready(p));
  }
  return zero2.EndMicroBatch();
}

std::vector<float> AsFloats(const TensorView& view) {
  std::vector<float> values(view.count);
  for (size_t i = 0; i < view.count; ++i) {
    values[i] = view.dtype == DType::kF32 ? static_cast<const float*>(view.data)[i]
                                          : Bf16ToFloat(static_cast<const uint16_t*>(view.data)[i]);
  }
  return values;
}

}  // namespace

std::vector<std::pair<std::string, size_t>> OddParameters() {
  return {{"a", 97},  {"b", 1},  {"c", 1009}, {"d", 31},  {"e", 7919},
          {"f", 640}, {"g", 33}, {"h", 1},    {"i", 2000}};
}

absl::StatusOr<Trained> TrainRank(const Training& training, Communicator& communicator) {
  const FlatLayout layout(training.parameters);
  const BucketPlan plan(layout, communicator.size(),
                        {.elements_max = training.bucket_elements, .frozen = training.frozen});
  const int rank = communicator.rank();
  const size_t n = plan.ShardSize(rank);
  FlatBuffer<float> masters(n), first(n), second(n), gradients(n), wide(layout.size());
  FlatBuffer<uint16_t> narrow(layout.size());
  for (size_t i = 0; i < layout.size(); ++i) {
    wide.data()[i] = Initial(i);
    narrow.data()[i] = FloatToBf16(Initial(i));
  }
  for (const ShardPiece& piece : plan.PiecesOf(rank)) {
    for (size_t i = 0; i < piece.flat.size(); ++i) {
      masters.data()[piece.local + i] = Initial(piece.flat.begin + i);
    }
  }
  const TensorView weights = training.weights == DType::kF32
                                 ? TensorView{wide.data(), wide.size(), DType::kF32}
                                 : TensorView{narrow.data(), narrow.size(), DType::kBF16};
  Zero2 zero2(plan, communicator,
              {masters.span(), first.span(), second.span(), gradients.span(), weights},
              {.wire = training.wire});
  Trained trained;
  const int rounds =
      *std::max_element(training.micro_batches.begin(), training.micro_batches.end());
  uint64_t updates = 0;
  for (int step = 1; step <= training.steps; ++step) {
    zero2.BeginStep();
    for (int micro = 0; micro < rounds; ++micro) {
      SH_RETURN_IF_ERROR(micro < training.micro_batches[rank]
                             ? MakeGradients(training, {step, rank, micro}, zero2)
                             : zero2.AddNothing());
    }
    double value = rank + 1;
    SH_ASSIGN_OR_RETURN(const UpdateOutcome outcome,
                        zero2.Update({.adamw = kAdamW,
                                      .update = updates + 1,
                                      .learning_rate = kLearningRate,
                                      .clip = training.clip},
                                     absl::MakeSpan(&value, 1), RunSerially));
    updates += outcome.skipped ? 0 : 1;
    trained.norms.push_back(outcome.gradient_norm);
    trained.skipped.push_back(outcome.skipped);
    trained.value = value;
  }
  SH_RETURN_IF_ERROR(zero2.AwaitAllWeights());
  trained.weights = AsFloats(weights);
  trained.masters.assign(masters.span().begin(), masters.span().end());
  trained.memory = zero2.memory();
  return trained;
}

std::vector<Trained> TrainOnThreads(const Training& training) {
  auto communicators = MakeThreadCommunicators(training.ranks(), absl::Minutes(2));
  std::vector<Trained> trained(communicators.size());
  std::vector<std::thread> threads;
  for (size_t rank = 0; rank < communicators.size(); ++rank) {
    threads.emplace_back([&, rank] {
      auto result = TrainRank(training, *communicators[rank]);
      SH_CHECK_OK(result);
      trained[rank] = *std::move(result);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return trained;
}

std::vector<float> PlainMasters(const Training& training) {
  const FlatLayout layout(training.parameters);
  std::vector<float> masters(layout.size());
  for (size_t i = 0; i < masters.size(); ++i) masters[i] = Initial(i);
  std::vector<float> first(layout.size()), second(layout.size());
  const bool alone = training.ranks() == 1;
  const int rounds =
      *std::max_element(training.micro_batches.begin(), training.micro_batches.end());
  uint64_t updates = 0;
  for (int step = 1; step <= training.steps; ++step) {
    std::vector<float> sum(layout.size(), 0.0f);
    for (int micro = 0; micro < rounds; ++micro) {
      std::vector<float> round(layout.size(), 0.0f);
      for (int rank = 0; rank < training.ranks(); ++rank) {
        for (size_t p = 0; p < training.parameters.size(); ++p) {
          std::vector<float> mine(training.parameters[p].second, 0.0f);
          if (micro < training.micro_batches[rank]) {
            mine = Gradient(training, {step, rank, micro}, p, 0);
            if (IsTied(training, p)) {
              const auto more = Gradient(training, {step, rank, micro}, p, 1);
              for (size_t i = 0; i < mine.size(); ++i) {
                // One rank adds each to what is in its shard.
                const float before = sum[layout.parameters()[p].offset + i];
                mine[i] = (alone && micro > 0 ? before + mine[i] : mine[i]) + more[i];
              }
            }
          }
          for (size_t i = 0; i < mine.size(); ++i) {
            float value = mine[i];
            if (training.wire == DType::kBF16) value = Bf16ToFloat(FloatToBf16(value));
            float& place = round[layout.parameters()[p].offset + i];
            place = rank == 0 ? value : place + value;
          }
        }
      }
      const size_t tied = training.tied ? layout.parameters().back().offset : sum.size();
      for (size_t i = 0; i < sum.size(); ++i) {
        sum[i] = micro == 0 || (alone && i >= tied) ? round[i] : sum[i] + round[i];
      }
    }
    if (std::any_of(sum.begin(), sum.end(), [](float value) { return std::isnan(value); }))
      continue;
    const AdamWScalars scalars = AdamWScalarsFor(kAdamW, ++updates, kLearningRate, 1.0);
    for (size_t p = 0; p < training.parameters.size(); ++p) {
      if (std::count(training.frozen.begin(), training.frozen.end(), p) > 0) continue;
      const size_t begin = layout.parameters()[p].offset;
      const size_t end =
          p + 1 < training.parameters.size() ? layout.parameters()[p + 1].offset : layout.size();
      for (size_t i = begin; i < end; ++i) {
        AdamWElement(sum[i], scalars, &masters[i], &first[i], &second[i]);
      }
    }
  }
  return masters;
}

}  // namespace stillhouse

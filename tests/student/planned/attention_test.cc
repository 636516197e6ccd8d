// Attention in blocks against its definition in double, forward and backward, for both kinds of
// product.

#include "student/planned/attention.h"

#include <cmath>
#include <vector>

#include "common/random.h"
#include "common/tensor_view.h"
#include "gtest/gtest.h"
#include "model/parallel.h"

namespace stillhouse::planned {
namespace {

double Widen(float value) { return value; }
double Widen(uint16_t value) { return Bf16ToFloat(value); }
void Narrow(double value, float* out) { *out = static_cast<float>(value); }
void Narrow(double value, uint16_t* out) { *out = FloatToBf16(static_cast<float>(value)); }

constexpr int64_t kSpareRows = 2 * kPanel;

struct Case {
  AttentionShape shape;
  std::vector<int64_t> lengths;
  int64_t window;
};

template <typename T>
struct Problem {
  explicit Problem(const Case& c) : shape(c.shape) {
    stride = (2 * shape.kv_heads + shape.heads) * shape.size;
    out_width = shape.heads * shape.size;
    for (const int64_t length : c.lengths) tokens += length;
    RandomStream random(5);
    input.resize(static_cast<size_t>((tokens + kSpareRows) * stride));
    d_out.resize(static_cast<size_t>((tokens + kSpareRows) * out_width));
    for (T& value : input) Narrow(random.NextNormal(), &value);
    for (T& value : d_out) Narrow(random.NextNormal(), &value);
  }
  // Row t of value, key or query `head`, the heads counted through.
  double In(int64_t t, int64_t head, int64_t i) const {
    return Widen(input[static_cast<size_t>(t * stride + head * shape.size + i)]);
  }
  double Out(int64_t t, int64_t head, int64_t i) const {
    return Widen(d_out[static_cast<size_t>(t * out_width + head * shape.size + i)]);
  }
  const AttentionShape shape;
  int64_t tokens = 0, stride = 0, out_width = 0;
  std::vector<T> input, d_out;
};

struct Solution {
  std::vector<double> out, lse, d_input;
};

// By the definition, one query of one head after the other.
template <typename T>
void SolveQuery(const Problem<T>& p, int64_t begin, int64_t query, int64_t head, int64_t window,
                Solution* s) {
  const int64_t size = p.shape.size, kv_heads = p.shape.kv_heads;
  const int64_t kv = head / (p.shape.heads / kv_heads), place = 2 * kv_heads + head;
  const int64_t first = window > 0 ? std::max(begin, query - window + 1) : begin;
  const double scale = 1 / std::sqrt(static_cast<double>(size));
  std::vector<double> share;
  double sum = 0, delta = 0;
  for (int64_t key = first; key <= query; ++key) {
    double score = 0;
    for (int64_t i = 0; i < size; ++i) score += p.In(query, place, i) * p.In(key, kv_heads + kv, i);
    share.push_back(std::exp(score * scale));
    sum += share.back();
  }
  s->lse[query * p.shape.heads + head] = std::log(sum);
  std::vector<double> d_share(share.size());
  for (size_t j = 0; j < share.size(); ++j) {
    share[j] /= sum;
    for (int64_t i = 0; i < size; ++i) {
      const int64_t key = first + static_cast<int64_t>(j);
      s->out[query * p.out_width + head * size + i] += share[j] * p.In(key, kv, i);
      d_share[j] += p.Out(query, head, i) * p.In(key, kv, i);
      s->d_input[key * p.stride + kv * size + i] += share[j] * p.Out(query, head, i);
    }
    delta += share[j] * d_share[j];
  }
  for (size_t j = 0; j < share.size(); ++j) {
    const double d = share[j] * (d_share[j] - delta) * scale;
    const int64_t key = first + static_cast<int64_t>(j);
    for (int64_t i = 0; i < size; ++i) {
      s->d_input[query * p.stride + place * size + i] += d * p.In(key, kv_heads + kv, i);
      s->d_input[key * p.stride + (kv_heads + kv) * size + i] += d * p.In(query, place, i);
    }
  }
}

template <typename T>
Solution Solve(const Problem<T>& p, const Case& c) {
  Solution s;
  s.out.resize(static_cast<size_t>(p.tokens * p.out_width));
  s.lse.resize(static_cast<size_t>(p.tokens * p.shape.heads));
  s.d_input.resize(static_cast<size_t>(p.tokens * p.stride));
  int64_t begin = 0;
  for (const int64_t length : c.lengths) {
    for (int64_t t = begin; t < begin + length; ++t) {
      for (int64_t head = 0; head < p.shape.heads; ++head) {
        SolveQuery(p, begin, t, head, c.window, &s);
      }
    }
    begin += length;
  }
  return s;
}

template <typename V>
double Worst(const std::vector<V>& got, const std::vector<double>& wanted) {
  double worst = 0, largest = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    worst = std::max(worst, std::abs(Widen(got[i]) - wanted[i]));
    largest = std::max(largest, std::abs(wanted[i]));
  }
  return worst / largest;
}

template <typename T>
void Check(const Case& c, double tolerance) {
  const Problem<T> p(c);
  const Solution wanted = Solve(p, c);
  Attention<T> attention(c.shape);
  attention.Reserve(*std::max_element(c.lengths.begin(), c.lengths.end()));
  std::vector<T> out(static_cast<size_t>((p.tokens + kSpareRows) * p.out_width));
  std::vector<T> d_input(static_cast<size_t>((p.tokens + kSpareRows) * p.stride));
  std::vector<float> lse(static_cast<size_t>(p.tokens * c.shape.heads));
  attention.Forward(c.lengths, c.window, {p.input.data(), p.stride}, out.data(), lse.data());
  EXPECT_LT(Worst(out, wanted.out), tolerance);
  EXPECT_LT(Worst(lse, wanted.lse), 1e-5);
  attention.Backward(c.lengths, c.window, {p.input.data(), p.stride}, out.data(), p.d_out.data(),
                     lse.data(), d_input.data());
  EXPECT_LT(Worst(d_input, wanted.d_input), tolerance);
}

std::vector<Case> Cases(ProductKind kind) {
  return {
      {{4, 2, 16, kind}, {1, 2, 40}, 0},   // a document of one token
      {{3, 1, 6, kind}, {65, 64, 63}, 0},  // around a block; an odd size
      {{5, 5, 2, kind}, {7}, 3},           // a head of its own for each query head
      {{6, 2, 64, kind}, {200, 9}, 0},     // several blocks
      {{4, 1, 40, kind}, {150}, 64},       // a window of one block
      {{2, 2, 32, kind}, {170, 33}, 5},    // a window of a few tokens
      {{2, 1, 32, kind}, {140}, 100},      // a window between blocks
  };
}

class AttentionTest : public testing::TestWithParam<int> {};

TEST_P(AttentionTest, FollowsItsDefinition) {
  SetComputeThreads(GetParam());
  for (const Case& c : Cases(ProductKind::kPortable)) {
    Check<float>(c, 1e-5);
    Check<uint16_t>(c, 0.02);
  }
}

TEST_P(AttentionTest, FollowsItsDefinitionOnTheMatrixUnit) {
  if (!HasTiles()) GTEST_SKIP() << "this processor has no matrix unit";
  SetComputeThreads(GetParam());
  for (const Case& c : Cases(ProductKind::kTiles)) Check<uint16_t>(c, 0.02);
}

INSTANTIATE_TEST_SUITE_P(Threads, AttentionTest, testing::Values(1, 3));

}  // namespace
}  // namespace stillhouse::planned

#include "teacher_pool/influence.h"

#include <cmath>

#include "common/status.h"
#include "formats/json.h"
#include "model/parallel.h"
#include "model/vector_math.h"

namespace stillhouse {
namespace {

constexpr int64_t kGrainRows = 16;
constexpr int64_t kDoubles = 8;

struct Products {
  double dot = 0, input = 0, output = 0;
};

template <typename T>
SH_INLINE Products ProductsOf(const T* a, const T* b, int64_t width) {
  double dot[kDoubles] = {}, input[kDoubles] = {}, output[kDoubles] = {};
  int64_t i = 0;
  for (; i + kDoubles <= width; i += kDoubles) {
    for (int64_t j = 0; j < kDoubles; ++j) {
      const double x = static_cast<double>(vector_math::Load(a[i + j]));
      const double y = static_cast<double>(vector_math::Load(b[i + j]));
      dot[j] += x * y;
      input[j] += x * x;
      output[j] += y * y;
    }
  }
  for (; i < width; ++i) {
    const double x = static_cast<double>(vector_math::Load(a[i]));
    const double y = static_cast<double>(vector_math::Load(b[i]));
    dot[0] += x * y;
    input[0] += x * x;
    output[0] += y * y;
  }
  Products sum;
  for (int64_t j = 0; j < kDoubles; ++j) {
    sum.dot += dot[j];
    sum.input += input[j];
    sum.output += output[j];
  }
  return sum;
}

SH_DISPATCHED Products RowProducts(const float* a, const float* b, int64_t width) {
  return ProductsOf(a, b, width);
}
SH_DISPATCHED Products RowProducts(const uint16_t* a, const uint16_t* b, int64_t width) {
  return ProductsOf(a, b, width);
}

// A state of length zero has no direction: it counts as unturned.
double Turn(const Products& p) {
  const double lengths = std::sqrt(p.input) * std::sqrt(p.output);
  return lengths > 0 ? 1.0 - p.dot / lengths : 0.0;
}

}  // namespace

void BlockInfluence::Add(int64_t layer, const at::Tensor& input, const at::Tensor& output,
                         absl::Span<const int64_t> places) {
  SH_CHECK(input.is_contiguous() && output.is_contiguous() && input.sizes() == output.sizes());
  if (layer == 0) rows_ += places.size();
  const int64_t width = input.size(1);
  row_values_.resize(places.size());
  const auto add = [&](const auto* a, const auto* b) {
    ParallelFor(0, static_cast<int64_t>(places.size()), kGrainRows,
                [&](int64_t begin, int64_t end) {
                  for (int64_t r = begin; r < end; ++r) {
                    const int64_t at = places[static_cast<size_t>(r)] * width;
                    row_values_[static_cast<size_t>(r)] = Turn(RowProducts(a + at, b + at, width));
                  }
                });
  };
  if (input.scalar_type() == at::kFloat) {
    add(input.const_data_ptr<float>(), output.const_data_ptr<float>());
  } else {
    SH_CHECK(input.scalar_type() == at::kBFloat16);
    add(static_cast<const uint16_t*>(input.const_data_ptr()),
        static_cast<const uint16_t*>(output.const_data_ptr()));
  }
  double& sum = sums_[static_cast<size_t>(layer)];
  for (const double value : row_values_) sum += value;
}

std::vector<double> BlockInfluence::Mean() const {
  SH_CHECK(rows_ > 0);
  std::vector<double> mean = sums_;
  for (double& value : mean) value /= static_cast<double>(rows_);
  return mean;
}

std::string BlockInfluence::ToJson() const {
  return OrderedJson({{"influence", Mean()}, {"rows", rows_}}).dump();
}

}  // namespace stillhouse

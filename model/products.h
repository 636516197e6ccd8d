// Products: products of matrices by LibTorch, in memory that the caller keeps.
//
// The tensors that LibTorch wants are made once and pointed at other memory for each product, so
// that nothing is allocated here; what LibTorch allocates within a product is its own (oneDNN: its
// primitive and scratch). Matrices are row-major. bfloat16 on a CPU without such products is
// multiplied as in matmul.h. Wide products keep the fp32 sums of bfloat16 operands where LibTorch
// brings Intel's MKL and the CPU a matrix unit (there its product is also 1.4 to 2 times as fast as
// oneDNN's for these shapes); elsewhere they are rounded to bfloat16 and widened. All throw
// c10::Error; CallTorch turns it into a Status. Threads: one at a time; inside, LibTorch's.
#pragma once

#include <cstdint>

#include "ATen/core/Tensor.h"

namespace stillhouse {

// Memory of others, of the dtype that its user says.
struct Matrix {
  void* data = nullptr;
  int64_t rows = 0, columns = 0;
  int64_t stride = 0;  // of rows, in elements
};

// A tensor that PointTensor may make a view of any memory.
at::Tensor MovableTensor(at::ScalarType dtype);
// `tensor` becomes a view of `matrix`, transposed or not; nothing is allocated. REQUIRES: made by
// MovableTensor, with the matrix's dtype.
void PointTensor(const at::Tensor& tensor, const Matrix& matrix, bool transposed = false);

class Products {
 public:
  // `dtype` of all operands: float32 or bfloat16.
  explicit Products(at::ScalarType dtype);

  // out [m, n] = a [m, k] · bᵀ, b [n, k]; or += where `add`, before the sum is rounded.
  void TimesTransposed(const Matrix& a, const Matrix& b, bool add, const Matrix& out);
  // out [m, n] = a [m, k] · b, b [k, n]; the same of `add`.
  void Times(const Matrix& a, const Matrix& b, bool add, const Matrix& out);
  // The same in fp32, rows end to end.
  void TimesWide(const Matrix& a, const Matrix& b, float* out);
  // out [n, k] fp32, rows end to end, = aᵀ · b, a [m, n], b [m, k]; or += where `add`.
  void TransposedTimesWide(const Matrix& a, const Matrix& b, bool add, float* out);

 private:
  void Run(bool add);
  void RunWide(const Matrix& a, bool transposed, const Matrix& b, bool add, float* out);

  const at::ScalarType dtype_;
  at::Tensor a_, b_, out_;
  at::Tensor narrow_;  // a product before it is widened
};

}  // namespace stillhouse

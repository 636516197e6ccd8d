#include "model/products.h"

#include "ATen/ops/empty.h"
#include "c10/core/StorageImpl.h"
#include "model/matmul.h"
#include "model/parallel.h"
#include "model/vector_math.h"

// MKL's product of bfloat16 matrices with a float32 result, which LibTorch exports where it was
// built with MKL; null elsewhere.
extern "C" void cblas_gemm_bf16bf16f32(int layout, int transpose_a, int transpose_b, int m, int n,
                                       int k, float alpha, const void* a, int lda, const void* b,
                                       int ldb, float beta, float* c, int ldc)
    __attribute__((weak));

namespace stillhouse {
namespace {

constexpr int kRowMajor = 101, kPlain = 111, kTransposed = 112;  // CBLAS

constexpr size_t kStorageBytes = size_t{1} << 46;  // what a movable tensor's storage claims

constexpr int64_t kWidenGrain = 1 << 15;

bool HasWideProducts() { return cblas_gemm_bf16bf16f32 != nullptr && ops::HasMatrixUnit(); }

SH_DISPATCHED void Widen(const uint16_t* __restrict x, int64_t n, bool add, float* __restrict out) {
  if (add) {
    for (int64_t i = 0; i < n; ++i) out[i] += vector_math::Load(x[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = vector_math::Load(x[i]);
  }
}

}  // namespace

at::Tensor MovableTensor(at::ScalarType dtype) {
  at::Tensor tensor = at::empty({0, 0}, at::TensorOptions().dtype(dtype));
  tensor.storage().unsafeGetStorageImpl()->set_nbytes(kStorageBytes);
  return tensor;
}

void PointTensor(const at::Tensor& tensor, const Matrix& matrix, bool transposed) {
  tensor.storage().unsafeGetStorageImpl()->set_data_ptr_noswap(
      c10::DataPtr(matrix.data, c10::Device(c10::kCPU)));
  const int64_t plain_sizes[] = {matrix.rows, matrix.columns}, plain_strides[] = {matrix.stride, 1};
  const int64_t turned_sizes[] = {matrix.columns, matrix.rows},
                turned_strides[] = {1, matrix.stride};
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(transposed ? turned_sizes : plain_sizes,
                                                      transposed ? turned_strides : plain_strides);
}

Products::Products(at::ScalarType dtype)
    : dtype_(dtype),
      a_(MovableTensor(dtype)),
      b_(MovableTensor(dtype)),
      out_(MovableTensor(dtype)),
      narrow_(at::empty({0})) {}

void Products::Run(bool add) {
  if (add) {
    ops::AddMatMulInto(out_, a_, b_);
  } else {
    ops::MatMulInto(out_, a_, b_);
  }
}

void Products::TimesTransposed(const Matrix& a, const Matrix& b, bool add, const Matrix& out) {
  PointTensor(a_, a);
  PointTensor(b_, b, /*transposed=*/true);
  PointTensor(out_, out);
  Run(add);
}

void Products::Times(const Matrix& a, const Matrix& b, bool add, const Matrix& out) {
  PointTensor(a_, a);
  PointTensor(b_, b);
  PointTensor(out_, out);
  Run(add);
}

void Products::RunWide(const Matrix& a, bool transposed, const Matrix& b, bool add, float* out) {
  const int64_t rows = transposed ? a.columns : a.rows, depth = transposed ? a.rows : a.columns;
  if (dtype_ == at::kFloat) {
    PointTensor(a_, a, transposed);
    PointTensor(b_, b);
    PointTensor(out_, {out, rows, b.columns, b.columns});
    Run(add);
    return;
  }
  if (HasWideProducts()) {
    cblas_gemm_bf16bf16f32(kRowMajor, transposed ? kTransposed : kPlain, kPlain,
                           static_cast<int>(rows), static_cast<int>(b.columns),
                           static_cast<int>(depth), 1.0f, a.data, static_cast<int>(a.stride),
                           b.data, static_cast<int>(b.stride), add ? 1.0f : 0.0f, out,
                           static_cast<int>(b.columns));
    return;
  }
  if (narrow_.numel() < rows * b.columns) {
    narrow_ = at::empty({rows * b.columns}, at::TensorOptions().dtype(at::kBFloat16));
  }
  PointTensor(a_, a, transposed);
  PointTensor(b_, b);
  PointTensor(out_, {narrow_.mutable_data_ptr(), rows, b.columns, b.columns});
  Run(/*add=*/false);
  const auto* sums = static_cast<const uint16_t*>(narrow_.const_data_ptr());
  ParallelFor(0, rows * b.columns, kWidenGrain, [&](int64_t begin, int64_t end) {
    Widen(sums + begin, end - begin, add, out + begin);
  });
}

void Products::TimesWide(const Matrix& a, const Matrix& b, float* out) {
  RunWide(a, /*transposed=*/false, b, /*add=*/false, out);
}

void Products::TransposedTimesWide(const Matrix& a, const Matrix& b, bool add, float* out) {
  RunWide(a, /*transposed=*/true, b, add, out);
}

}  // namespace stillhouse

#include "model/products.h"

#include "ATen/ops/empty.h"
#include "c10/core/StorageImpl.h"
#include "model/matmul.h"

namespace stillhouse {
namespace {

constexpr size_t kStorageBytes = size_t{1} << 46;  // what a movable tensor's storage claims

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
    : a_(MovableTensor(dtype)), b_(MovableTensor(dtype)), out_(MovableTensor(dtype)) {}

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

void Products::TransposedTimes(const Matrix& a, const Matrix& b, const Matrix& out) {
  PointTensor(a_, a, /*transposed=*/true);
  PointTensor(b_, b);
  PointTensor(out_, out);
  Run(/*add=*/false);
}

}  // namespace stillhouse

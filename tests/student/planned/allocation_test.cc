// A planned step allocates nothing once it is planned: every way to get memory is counted.
//
// LibTorch's products allocate inside (oneDNN makes a primitive and scratch for each), which is not
// ours to change: their entry points are wrapped here, and what is allocated within them is counted
// apart.

#include <dlfcn.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>

#include "ATen/core/Tensor.h"
#include "c10/core/Scalar.h"
#include "common/status.h"
#include "gtest/gtest.h"
#include "model/parallel.h"
#include "tests/student/flat_sink.h"
#include "tests/student/planned/random_batch.h"
#include "tests/student/small_student.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SH_OWN_MALLOC 0  // the sanitizer has its own
#else
#define SH_OWN_MALLOC 1
#endif

namespace {

std::atomic<bool> counting{false}, in_product{false};
std::atomic<int64_t> allocations{0}, product_allocations{0}, products{0};

void Count() {
  if (!counting.load(std::memory_order_relaxed)) return;
  ++(in_product.load(std::memory_order_relaxed) ? product_allocations : allocations);
}

}  // namespace

#if SH_OWN_MALLOC
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void* malloc(size_t size) {
  Count();
  return __libc_malloc(size);
}
void* calloc(size_t count, size_t size) {
  Count();
  return __libc_calloc(count, size);
}
void* realloc(void* old, size_t size) {
  Count();
  return __libc_realloc(old, size);
}
void* aligned_alloc(size_t alignment, size_t size) {
  Count();
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** out, size_t alignment, size_t size) {
  Count();
  *out = __libc_memalign(alignment, size);
  return *out == nullptr ? ENOMEM : 0;
}
void* mmap(void* address, size_t size, int protection, int flags, int file, off_t offset) {
  Count();
  return reinterpret_cast<void*>(syscall(SYS_mmap, address, size, protection, flags, file, offset));
}
}
#endif

// In place of at::_ops::mm_out::call and addmm_out::call for the code of this program.
at::Tensor& CountedMm(const at::Tensor& a, const at::Tensor& b,
                      at::Tensor& out) asm("_ZN2at4_ops6mm_out4callERKNS_6TensorES4_RS2_");
at::Tensor& CountedMm(const at::Tensor& a, const at::Tensor& b, at::Tensor& out) {
  using Call = at::Tensor& (*)(const at::Tensor&, const at::Tensor&, at::Tensor&);
  static const Call call =
      reinterpret_cast<Call>(dlsym(RTLD_NEXT, "_ZN2at4_ops6mm_out4callERKNS_6TensorES4_RS2_"));
  ++products;
  in_product = true;
  at::Tensor& result = call(a, b, out);
  in_product = false;
  return result;
}

at::Tensor& CountedAddMm(
    const at::Tensor& self, const at::Tensor& a, const at::Tensor& b, const at::Scalar& beta,
    const at::Scalar& alpha,
    at::Tensor& out) asm("_ZN2at4_ops9addmm_out4callERKNS_6TensorES4_S4_RKN3c106ScalarES8_RS2_");
at::Tensor& CountedAddMm(const at::Tensor& self, const at::Tensor& a, const at::Tensor& b,
                         const at::Scalar& beta, const at::Scalar& alpha, at::Tensor& out) {
  using Call = at::Tensor& (*)(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                               const at::Scalar&, const at::Scalar&, at::Tensor&);
  static const Call call = reinterpret_cast<Call>(
      dlsym(RTLD_NEXT, "_ZN2at4_ops9addmm_out4callERKNS_6TensorES4_S4_RKN3c106ScalarES8_RS2_"));
  in_product = true;
  at::Tensor& result = call(self, a, b, beta, alpha, out);
  in_product = false;
  return result;
}

namespace stillhouse {
namespace {

ModelConfig Config(const std::string& kind) {
  ModelConfig config = kind == "tied" ? SmallConfig(true) : SmallVariant(kind);
  config.hidden_size = 64;
  config.head_dim = 32;
  config.intermediate_size = 96;
  return config;
}

class AllocationTest : public testing::TestWithParam<std::string> {};

TEST_P(AllocationTest, APlannedStepAllocatesNothing) {
#if !SH_OWN_MALLOC
  GTEST_SKIP() << "a sanitizer counts memory itself";
#endif
  const std::vector<LossTerm> terms = {{LossKind::kSampledKl, 1, 0.6},
                                       {LossKind::kCrossEntropy, 1, 0.1},
                                       {LossKind::kExactKl, 2, 0.3}};
  for (const DType compute : {DType::kBF16, DType::kF32}) {
    SmallStudent student(terms, Config(GetParam()), compute);
    SetComputeThreads(2);
    const auto planned = student.Planned(/*tokens_max=*/150);
    const std::vector<double> coefficients = {0.1, 0.1, 0.1};
    std::vector<std::vector<float>> values;
    FlatSink sink(student.state->layout, student.state->gradients.span());
    // Other lengths, tokens and loss rows, none more than was planned.
    const std::vector<MicroBatch> batches = {
        RandomBatch({60, 50, 40}, 53, 1, 1), RandomBatch({7, 60, 33}, 53, 2, 2),
        RandomBatch({60, 50, 40}, 53, 1, 3), RandomBatch({31}, 53, 3, 4)};
    for (size_t i = 0; i < batches.size(); ++i) {
      counting = i > 0;
      const absl::Status status = planned->AddGradients(batches[i], coefficients, sink, &values);
      counting = false;
      ASSERT_TRUE(status.ok()) << status;
    }
    EXPECT_EQ(allocations.exchange(0), 0);
    EXPECT_GT(products.load(), 0);
  }
  RecordProperty("allocations_within_products", std::to_string(product_allocations.load()));
}

// The counter counts: autograd allocates in every step.
TEST(AllocationCounterTest, SeesThoseOfAutograd) {
#if !SH_OWN_MALLOC
  GTEST_SKIP() << "a sanitizer counts memory itself";
#endif
  SmallStudent student({{LossKind::kCrossEntropy, 1, 1}}, Config("tied"), DType::kF32);
  const MicroBatch batch = RandomBatch({20}, 53, 1, 1);
  std::vector<std::vector<float>> values;
  const std::vector<double> coefficients = {1};
  FlatSink sink(student.state->layout, student.state->gradients.span());
  for (const bool first : {true, false}) {
    counting = !first;
    SH_CHECK_OK(student.model->AddGradients(batch, coefficients, sink, &values));
    counting = false;
  }
  EXPECT_GT(allocations.exchange(0), 100);
}

INSTANTIATE_TEST_SUITE_P(Kinds, AllocationTest,
                         testing::Values("tied", "qwen2", "qwen3", "mistral"),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace stillhouse

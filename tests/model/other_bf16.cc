// Part of a test program that ctest runs twice: where SH_OTHER_BF16 is set, all of it multiplies
// bfloat16 matrices as the kind of CPU does that this one is not (model/matmul.h).
#include <cstdio>
#include <cstdlib>

#include "model/matmul.h"

namespace stillhouse {
namespace {

[[maybe_unused]] const bool kSet = [] {
  if (std::getenv("SH_OTHER_BF16") == nullptr) return false;
  const bool has = !ops::HasBf16Products();
  ops::PretendBf16Products(has);
  std::printf("bfloat16 products as on a CPU with%s AVX-512\n", has ? "" : "out");
  return true;
}();

}  // namespace
}  // namespace stillhouse

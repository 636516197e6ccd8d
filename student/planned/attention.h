// Attention: causal grouped-query attention over documents end to end, forward and backward, in
// blocks.
//
// One document and one key/value head at a time, on one thread, with the query heads that share it
// one after the other: its keys and values are packed once for all of them. Scores exist for a
// block of rows at a time, in fp32; probabilities are rounded to T, as products take them. The
// backward pass computes them again from the log-sum-exp of each row, so that memory grows with the
// tokens and not with the square of the length (Dao et al., "FlashAttention", 2022; the order of
// its loops is that of FlashAttention-2). Blocks that no query of a window reaches, or that lie
// above the diagonal, are left out.
//
// T is float, or uint16_t for bfloat16 bits. Owner: keeps one scratch per thread, made by Reserve.
// Threads: one call at a time; inside, ParallelFor's. A document's results do not depend on its
// neighbours, nor on the number of threads.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "sharding/flat_buffer.h"
#include "student/planned/block_product.h"

namespace stillhouse::planned {

struct AttentionShape {
  int64_t heads = 0, kv_heads = 0, size = 0;
  ProductKind kind = ProductKind::kPortable;
};

// Queries, keys and values of all tokens, in one matrix of `stride` columns: row t holds values
// [kv_heads, size], then keys [kv_heads, size], then queries [heads, size]. At least kPanel rows
// past the last token's must be readable and finite.
template <typename T>
struct AttentionInput {
  const T* data = nullptr;
  int64_t stride = 0;
};

template <typename T>
class Attention {
 public:
  explicit Attention(const AttentionShape& shape) : shape_(shape) {}

  // Makes room for documents of up to `tokens_max` tokens. Allocates only where there is not
  // enough.
  void Reserve(int64_t tokens_max);

  // out [T, heads, size], lse [T, heads]: the log-sum-exp of each query's scaled scores. `window`
  // as in AttendDocuments of model/decoder_layer.h. REQUIRES: Reserve for the longest document.
  void Forward(absl::Span<const int64_t> lengths, int64_t window, const AttentionInput<T>& input,
               T* out, float* lse);
  // d_input: laid out as the input, overwritten; d_out [T, heads, size], with kPanel readable rows
  // past its last; `out` and `lse` as Forward made them.
  void Backward(absl::Span<const int64_t> lengths, int64_t window, const AttentionInput<T>& input,
                const T* out, const T* d_out, const float* lse, T* d_input);

 private:
  struct Scratch;
  struct Item;
  template <typename Body>
  void ForItems(absl::Span<const int64_t> lengths, Body body);
  Scratch ScratchOf(int thread);
  void ForwardItem(const Item& item, int64_t window, const AttentionInput<T>& input, T* out,
                   float* lse, Scratch& scratch);
  void BackwardItem(const Item& item, int64_t window, const AttentionInput<T>& input, const T* out,
                    const T* d_out, const float* lse, T* d_input, Scratch& scratch);
  void PackHead(const Item& item, int64_t head, const AttentionInput<T>& input, const T* out,
                const T* d_out, const float* lse, Scratch& scratch);
  void BackwardBlock(const Item& item, int64_t key, int64_t window, const AttentionInput<T>& input,
                     bool add, Scratch& scratch);

  const AttentionShape shape_;
  int64_t tokens_max_ = 0;
  int threads_ = 0;
  std::vector<FlatBuffer<float>> floats_;  // per thread
  std::vector<FlatBuffer<T>> values_;      // per thread
};

}  // namespace stillhouse::planned

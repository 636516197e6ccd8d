#include "student/planned/attention.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <utility>

#include "common/status.h"
#include "model/parallel.h"
#include "student/planned/attention_rows.h"

namespace stillhouse::planned {
namespace {

// Rows of scores at a time: queries forward, keys backward. A multiple of kPanel.
constexpr int64_t kBlock = 64;

}  // namespace

// One document and one key/value head.
template <typename T>
struct Attention<T>::Item {
  int64_t begin = 0;   // the document's first token
  int64_t length = 0;  // tokens
  int64_t kv_head = 0;
  // Elements of a packed operand's panel whose rows are the head's values, or the document's
  // tokens.
  int64_t head_panel = 0, token_panel = 0;
};

// One thread's. D is the head size, L the longest document, each rounded up.
template <typename T>
struct Attention<T>::Scratch {
  float *scores, *score_gradients;         // [kBlock, L]
  float* query_gradients_t;                // [D, L]
  float* query_gradients;                  // [L, D], also the output of a block forward
  float *key_gradients, *value_gradients;  // [L, D]
  float *lse, *delta;                      // [L]
  T *probabilities, *gradients;            // [kBlock, L]
  T* packed_gradients;                     // kBlock by L
  T* keys_t;                               // [D, L]
  T *columns, *output_columns;             // D by L, packed: keys or queries; gradients of outputs
  T *rows, *output_rows;                   // L by D, packed: values or queries; the same
  int64_t width = 0, tokens = 0;           // D, L
};

namespace {

struct ScratchSizes {
  size_t floats, values;
};

ScratchSizes SizesOf(int64_t width, int64_t tokens) {
  const auto matrix = static_cast<size_t>(width * tokens),
             block = static_cast<size_t>(kBlock * tokens);
  return {2 * block + 4 * matrix + 2 * static_cast<size_t>(tokens), 3 * block + 5 * matrix};
}

}  // namespace

template <typename T>
void Attention<T>::Reserve(int64_t tokens_max) {
  const int threads = ComputeThreads();
  if (tokens_max <= tokens_max_ && threads <= threads_) return;
  tokens_max_ = std::max(tokens_max_, RoundUp(tokens_max, kBlock));
  threads_ = std::max(threads_, threads);
  const ScratchSizes sizes = SizesOf(RoundUp(shape_.size, kPanel), tokens_max_);
  floats_.clear();
  values_.clear();
  for (int thread = 0; thread < threads_; ++thread) {
    floats_.emplace_back(sizes.floats);
    values_.emplace_back(sizes.values);
  }
}

template <typename T>
typename Attention<T>::Scratch Attention<T>::ScratchOf(int thread) {
  Scratch s;
  s.width = RoundUp(shape_.size, kPanel);
  s.tokens = tokens_max_;
  const int64_t matrix = s.width * s.tokens, block = kBlock * s.tokens;
  float* next = floats_[static_cast<size_t>(thread)].data();
  const auto take = [&next](int64_t count) { return std::exchange(next, next + count); };
  s.scores = take(block);
  s.score_gradients = take(block);
  s.query_gradients_t = take(matrix);
  s.query_gradients = take(matrix);
  s.key_gradients = take(matrix);
  s.value_gradients = take(matrix);
  s.lse = take(s.tokens);
  s.delta = take(s.tokens);
  T* next_value = values_[static_cast<size_t>(thread)].data();
  const auto take_values = [&next_value](int64_t count) {
    return std::exchange(next_value, next_value + count);
  };
  s.probabilities = take_values(block);
  s.gradients = take_values(block);
  s.packed_gradients = take_values(block);
  s.keys_t = take_values(matrix);
  s.columns = take_values(matrix);
  s.output_columns = take_values(matrix);
  s.rows = take_values(matrix);
  s.output_rows = take_values(matrix);
  return s;
}

template <typename T>
template <typename Body>
void Attention<T>::ForItems(absl::Span<const int64_t> lengths, Body body) {
  const auto items = static_cast<int64_t>(lengths.size()) * shape_.kv_heads;
  std::atomic<int64_t> next{0};
  std::atomic<int> threads{0};
  // Documents differ in length, so threads take them as they come.
  ParallelFor(0, std::min<int64_t>(threads_, items), 1, [&](int64_t begin, int64_t end) {
    Scratch scratch = ScratchOf(threads.fetch_add(1));
    int64_t document = 0, token = 0;
    for (int64_t i = next.fetch_add(1); i < items; i = next.fetch_add(1)) {
      for (; document < i / shape_.kv_heads; ++document) {
        token += lengths[static_cast<size_t>(document)];
      }
      Item item;
      item.begin = token;
      item.length = lengths[static_cast<size_t>(document)];
      item.kv_head = i % shape_.kv_heads;
      item.head_panel = scratch.width * kPanel;
      item.token_panel = RoundUp(item.length, kPanel) * kPanel;
      body(item, scratch);
    }
  });
}

template <typename T>
void Attention<T>::Forward(absl::Span<const int64_t> lengths, int64_t window,
                           const AttentionInput<T>& input, T* out, float* lse) {
  ForItems(lengths, [&](const Item& item, Scratch& scratch) {
    SH_CHECK(item.length <= scratch.tokens);
    ForwardItem(item, window, input, out, lse, scratch);
  });
}

template <typename T>
void Attention<T>::ForwardItem(const Item& item, int64_t window, const AttentionInput<T>& input,
                               T* out, float* lse, Scratch& scratch) {
  const auto [heads, kv_heads, size, kind] = shape_;
  const int64_t group = heads / kv_heads;
  const float scale = 1.0f / std::sqrt(static_cast<float>(size));
  const T* values = input.data + item.begin * input.stride + item.kv_head * size;
  const T* keys = values + kv_heads * size;
  const T* queries = input.data + item.begin * input.stride + 2 * kv_heads * size;
  PackColumns(kind, keys, input.stride, size, item.length, scratch.columns);
  PackRows(kind, values, input.stride, item.length, size, scratch.rows);
  for (int64_t head = item.kv_head * group; head < (item.kv_head + 1) * group; ++head) {
    for (int64_t query = 0; query < item.length; query += kBlock) {
      const int64_t count = std::min(kBlock, item.length - query);
      const int64_t lowest = window > 0 ? std::max<int64_t>(0, query - window + 1) : 0;
      const int64_t first_key = lowest / kPanel * kPanel, n = query + count - first_key;
      MultiplyPacked(kind, queries + query * input.stride + head * size, input.stride,
                     scratch.columns + first_key * scratch.width, item.head_panel, count, n, size,
                     /*add=*/false, scratch.scores, scratch.tokens);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t last = query + i - first_key;
        const int64_t first = window > 0 ? std::max<int64_t>(0, last - window + 1) : 0;
        float largest;
        const float sum = internal::SoftmaxRow(
            scratch.scores + i * scratch.tokens, first, last + 1, RoundUp(n, kPanel), scale,
            scratch.probabilities + i * scratch.tokens, &largest);
        scratch.delta[i] = 1.0f / sum;
        lse[(item.begin + query + i) * heads + head] = largest + std::log(sum);
      }
      MultiplyPacked(kind, scratch.probabilities, scratch.tokens, scratch.rows + first_key * kPanel,
                     item.token_panel, count, size, n,
                     /*add=*/false, scratch.query_gradients, scratch.width);
      for (int64_t i = 0; i < count; ++i) {
        internal::StoreScaled(scratch.query_gradients + i * scratch.width, scratch.delta[i], size,
                              out + ((item.begin + query + i) * heads + head) * size);
      }
    }
  }
}

template <typename T>
void Attention<T>::Backward(absl::Span<const int64_t> lengths, int64_t window,
                            const AttentionInput<T>& input, const T* out, const T* d_out,
                            const float* lse, T* d_input) {
  ForItems(lengths, [&](const Item& item, Scratch& scratch) {
    SH_CHECK(item.length <= scratch.tokens);
    BackwardItem(item, window, input, out, d_out, lse, d_input, scratch);
  });
}

// What all key blocks need of one query head.
template <typename T>
void Attention<T>::PackHead(const Item& item, int64_t head, const AttentionInput<T>& input,
                            const T* out, const T* d_out, const float* lse, Scratch& scratch) {
  const auto [heads, kv_heads, size, kind] = shape_;
  const T* queries = input.data + item.begin * input.stride + (2 * kv_heads + head) * size;
  const int64_t place = (item.begin * heads + head) * size, stride = heads * size;
  PackColumns(kind, queries, input.stride, size, item.length, scratch.columns);
  PackRows(kind, queries, input.stride, item.length, size, scratch.rows);
  PackColumns(kind, d_out + place, stride, size, item.length, scratch.output_columns);
  PackRows(kind, d_out + place, stride, item.length, size, scratch.output_rows);
  for (int64_t i = 0; i < item.length; ++i) {
    scratch.lse[i] = lse[(item.begin + i) * heads + head];
    scratch.delta[i] = internal::DotRow(d_out + place + i * stride, out + place + i * stride, size);
  }
  std::fill_n(scratch.query_gradients_t, size * scratch.tokens, 0.0f);
}

// Keys [key, key + kBlock) against every query of the head that sees one of them. Scores are
// transposed, a row for each key, so that both P and dS are left operands as they stand.
template <typename T>
void Attention<T>::BackwardBlock(const Item& item, int64_t key, int64_t window,
                                 const AttentionInput<T>& input, bool add, Scratch& scratch) {
  const auto [heads, kv_heads, size, kind] = shape_;
  const float scale = 1.0f / std::sqrt(static_cast<float>(size));
  const int64_t count = std::min(kBlock, item.length - key);
  const int64_t end = window > 0 ? std::min(item.length, key + count + window - 1) : item.length;
  const int64_t n = end - key, tokens = scratch.tokens;
  const T* values = input.data + (item.begin + key) * input.stride + item.kv_head * size;
  const T* keys = values + kv_heads * size;
  MultiplyPacked(kind, keys, input.stride, scratch.columns + key * scratch.width, item.head_panel,
                 count, n, size, /*add=*/false, scratch.scores, tokens);
  MultiplyPacked(kind, values, input.stride, scratch.output_columns + key * scratch.width,
                 item.head_panel, count, n, size, /*add=*/false, scratch.score_gradients, tokens);
  for (int64_t i = 0; i < count; ++i) {
    internal::GradientRow(scratch.scores + i * tokens, scratch.score_gradients + i * tokens,
                          scratch.lse + key, scratch.delta + key, scale, i,
                          window > 0 ? std::min(n, i + window) : n, RoundUp(n, kPanel),
                          scratch.probabilities + i * tokens, scratch.gradients + i * tokens);
  }
  MultiplyPacked(kind, scratch.probabilities, tokens, scratch.output_rows + key * kPanel,
                 item.token_panel, count, size, n, add,
                 scratch.value_gradients + key * scratch.width, scratch.width);
  MultiplyPacked(kind, scratch.gradients, tokens, scratch.rows + key * kPanel, item.token_panel,
                 count, size, n, add, scratch.key_gradients + key * scratch.width, scratch.width);
  PackRows(kind, scratch.gradients, tokens, count, n, scratch.packed_gradients);
  MultiplyPacked(kind, scratch.keys_t + key, tokens, scratch.packed_gradients,
                 RoundUp(count, kPanel) * kPanel, size, n, count, /*add=*/true,
                 scratch.query_gradients_t + key, tokens);
}

template <typename T>
void Attention<T>::BackwardItem(const Item& item, int64_t window, const AttentionInput<T>& input,
                                const T* out, const T* d_out, const float* lse, T* d_input,
                                Scratch& scratch) {
  const auto [heads, kv_heads, size, kind] = shape_;
  const int64_t group = heads / kv_heads, first = item.kv_head * group;
  const T* keys = input.data + item.begin * input.stride + (kv_heads + item.kv_head) * size;
  Transpose(keys, input.stride, item.length, size, scratch.keys_t, scratch.tokens);
  for (int64_t d = 0; d < size; ++d) {
    T* row = scratch.keys_t + d * scratch.tokens;
    std::fill(row + item.length, row + RoundUp(item.length, kPanel), T{0});
  }
  T* d_rows = d_input + item.begin * input.stride;
  for (int64_t head = first; head < first + group; ++head) {
    PackHead(item, head, input, out, d_out, lse, scratch);
    for (int64_t key = 0; key < item.length; key += kBlock) {
      BackwardBlock(item, key, window, input, /*add=*/head > first, scratch);
    }
    Transpose(scratch.query_gradients_t, scratch.tokens, size, item.length, scratch.query_gradients,
              scratch.width);
    for (int64_t i = 0; i < item.length; ++i) {
      internal::StoreScaled(scratch.query_gradients + i * scratch.width, 1.0f, size,
                            d_rows + i * input.stride + (2 * kv_heads + head) * size);
    }
  }
  for (int64_t i = 0; i < item.length; ++i) {
    T* row = d_rows + i * input.stride + item.kv_head * size;
    internal::StoreScaled(scratch.value_gradients + i * scratch.width, 1.0f, size, row);
    internal::StoreScaled(scratch.key_gradients + i * scratch.width, 1.0f, size,
                          row + kv_heads * size);
  }
}

template class Attention<float>;
template class Attention<uint16_t>;

}  // namespace stillhouse::planned

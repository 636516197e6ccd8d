#include "model/decoder_layer.h"

#include <algorithm>
#include <vector>

#include "ATen/ops/add.h"
#include "ATen/ops/arange.h"
#include "ATen/ops/cat.h"
#include "model/matmul.h"

namespace stillhouse {
namespace {

constexpr int64_t kWindowQueries = 256;  // the mask of a block has so many rows of window + 256

// x [n·L, heads, D] as [n, heads, L, D]; each head repeated `times` times, neighbours alike.
at::Tensor SplitHeads(const at::Tensor& x, int64_t documents, int64_t times) {
  const int64_t length = x.size(0) / documents, heads = x.size(1), size = x.size(2);
  const at::Tensor split = x.view({documents, length, heads, size}).transpose(1, 2);
  if (times == 1) return split;
  return split.unsqueeze(2)
      .expand({documents, heads, times, length, size})
      .reshape({documents, heads * times, length, size});
}

// [documents, heads, L, D] as [documents·L, heads·D].
at::Tensor JoinHeads(const at::Tensor& x) {
  return x.transpose(1, 2).reshape({x.size(0) * x.size(2), x.size(1) * x.size(3)});
}

// Which of the keys from `first_key` on each query from `first_query` on sees: [queries, keys]
// bool.
at::Tensor WindowMask(int64_t first_query, int64_t queries, int64_t first_key, int64_t keys,
                      int64_t window) {
  const auto places = at::TensorOptions().dtype(at::kLong);
  const at::Tensor query = at::arange(first_query, first_query + queries, places).unsqueeze(1);
  const at::Tensor key = at::arange(first_key, first_key + keys, places).unsqueeze(0);
  return key.le(query).logical_and(key.gt(query.sub(window)));
}

// Blocks of queries against the keys that any of them sees, so that neither time nor memory grows
// with the square of the length. q, k, v [documents, heads, L, D].
at::Tensor AttendWindow(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        int64_t window) {
  const int64_t length = q.size(2);
  std::vector<at::Tensor> blocks;
  for (int64_t begin = 0; begin < length; begin += kWindowQueries) {
    const int64_t queries = std::min(kWindowQueries, length - begin);
    const int64_t first_key = std::max<int64_t>(0, begin - window + 1);
    const int64_t keys = begin + queries - first_key;
    blocks.push_back(ops::MaskedAttention(q.narrow(2, begin, queries), k.narrow(2, first_key, keys),
                                          v.narrow(2, first_key, keys),
                                          WindowMask(begin, queries, first_key, keys, window)));
  }
  return blocks.size() == 1 ? blocks[0] : at::cat(blocks, 2);
}

// x [T, heads·D] as [T, heads, D], each head normalised where `norm` is defined.
at::Tensor Heads(const at::Tensor& x, const at::Tensor& norm, const ModelConfig& config) {
  const int64_t size = config.head_dim, heads = x.size(1) / size;
  if (!norm.defined()) return x.view({x.size(0), heads, size});
  return ops::RmsNorm(x.view({x.size(0) * heads, size}), norm, config.rms_norm_eps)
      .view({x.size(0), heads, size});
}

}  // namespace

at::Tensor AttendDocuments(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           int64_t documents, int64_t window) {
  const int64_t times = q.size(1) / k.size(1);
  const at::Tensor queries = SplitHeads(q, documents, 1);
  const at::Tensor keys = SplitHeads(k, documents, times), values = SplitHeads(v, documents, times);
  // A document that fits into the window is attended to like any other.
  if (window == 0 || window >= queries.size(2)) {
    return JoinHeads(ops::Attention(queries, keys, values, /*causal=*/true));
  }
  return JoinHeads(AttendWindow(queries, keys, values, window));
}

at::Tensor AttendAll(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  const int64_t times = q.size(1) / k.size(1);
  return JoinHeads(ops::Attention(SplitHeads(q, 1, 1), SplitHeads(k, 1, times),
                                  SplitHeads(v, 1, times), /*causal=*/false));
}

at::Tensor RunLayer(const LayerWeights& layer, const ModelConfig& config,
                    const ops::RotaryTable& table, const at::Tensor& row, const at::Tensor& x,
                    AttendFunction attend) {
  const at::Tensor normed = ops::RmsNorm(x, layer.input_norm, config.rms_norm_eps);
  const at::Tensor q = Heads(ops::Linear(normed, layer.q, layer.q_bias), layer.q_norm, config);
  const at::Tensor k = Heads(ops::Linear(normed, layer.k, layer.k_bias), layer.k_norm, config);
  const at::Tensor v = Heads(ops::Linear(normed, layer.v, layer.v_bias), /*norm=*/{}, config);
  const at::Tensor attended = attend(ops::Rotate(q, table, row), ops::Rotate(k, table, row), v);
  const at::Tensor middle = at::add(x, ops::Linear(attended, layer.o, layer.o_bias));
  const at::Tensor again = ops::RmsNorm(middle, layer.attention_norm, config.rms_norm_eps);
  const at::Tensor gated = ops::SwiGlu(ops::Linear(again, layer.gate, layer.gate_bias),
                                       ops::Linear(again, layer.up, layer.up_bias));
  return at::add(middle, ops::Linear(gated, layer.down, layer.down_bias));
}

}  // namespace stillhouse

#include "model/decoder_layer.h"

#include "ATen/ops/add.h"
#include "model/matmul.h"

namespace stillhouse {
namespace {

// x [n·L, heads, D] as [n, heads, L, D]; each head repeated `times` times, neighbours alike.
at::Tensor SplitHeads(const at::Tensor& x, int64_t documents, int64_t times) {
  const int64_t length = x.size(0) / documents, heads = x.size(1), size = x.size(2);
  const at::Tensor split = x.view({documents, length, heads, size}).transpose(1, 2);
  if (times == 1) return split;
  return split.unsqueeze(2)
      .expand({documents, heads, times, length, size})
      .reshape({documents, heads * times, length, size});
}

at::Tensor Attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t documents,
                  bool causal) {
  const int64_t times = q.size(1) / k.size(1);
  return ops::Attention(SplitHeads(q, documents, 1), SplitHeads(k, documents, times),
                        SplitHeads(v, documents, times), causal)
      .transpose(1, 2)
      .reshape({q.size(0), q.size(1) * q.size(2)});
}

}  // namespace

at::Tensor AttendDocuments(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           int64_t documents) {
  return Attend(q, k, v, documents, /*causal=*/true);
}

at::Tensor AttendAll(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  return Attend(q, k, v, /*documents=*/1, /*causal=*/false);
}

at::Tensor RunLayer(const LayerWeights& layer, const ModelConfig& config,
                    const ops::RotaryTable& table, const at::Tensor& position, const at::Tensor& x,
                    AttendFunction attend) {
  const int64_t tokens = x.size(0), size = config.head_dim;
  const at::Tensor normed = ops::RmsNorm(x, layer.input_norm, config.rms_norm_eps);
  const at::Tensor q = ops::Linear(normed, layer.q).view({tokens, config.heads, size});
  const at::Tensor k = ops::Linear(normed, layer.k).view({tokens, config.kv_heads, size});
  const at::Tensor v = ops::Linear(normed, layer.v).view({tokens, config.kv_heads, size});
  const at::Tensor attended =
      attend(ops::Rotate(q, table, position), ops::Rotate(k, table, position), v);
  const at::Tensor middle = at::add(x, ops::Linear(attended, layer.o));
  const at::Tensor again = ops::RmsNorm(middle, layer.attention_norm, config.rms_norm_eps);
  const at::Tensor gated =
      ops::SwiGlu(ops::Linear(again, layer.gate), ops::Linear(again, layer.up));
  return at::add(middle, ops::Linear(gated, layer.down));
}

}  // namespace stillhouse

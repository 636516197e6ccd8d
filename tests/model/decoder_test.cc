#include "model/decoder.h"

#include <cmath>

#include "ATen/ATen.h"
#include "c10/core/GradMode.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/decoder_layer.h"
#include "model/ops.h"
#include "model/rotary.h"
#include "tests/model/random_decoder.h"

namespace stillhouse {
namespace {

using ::stillhouse::testing::RandomBatch;
using ::stillhouse::testing::RandomDecoder;
using ::stillhouse::testing::SmallConfig;
using ::testing::HasSubstr;

double MaxAbs(const at::Tensor& x) { return x.to(at::kDouble).abs().max().item<double>(); }
// Largest difference over largest value.
double Relative(const at::Tensor& value, const at::Tensor& expected) {
  return MaxAbs(value.to(at::kDouble) - expected.to(at::kDouble)) / MaxAbs(expected);
}

// The same function written plainly with ATen's operators, in any dtype: the oracle.
at::Tensor PlainNorm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return x * at::rsqrt(x.pow(2).mean(-1, /*keepdim=*/true) + eps) * weight;
}

at::Tensor PlainRotate(const at::Tensor& x, double theta) {  // [L, heads, D]
  const auto options = x.options();
  const int64_t size = x.size(2);
  const at::Tensor frequency = 1.0 / at::pow(theta, at::arange(0, size, 2, options) / double(size));
  const at::Tensor angle = at::outer(at::arange(x.size(0), options), frequency).unsqueeze(1);
  const at::Tensor a = x.narrow(2, 0, size / 2), b = x.narrow(2, size / 2, size / 2);
  return at::cat({a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()}, 2);
}

at::Tensor PlainDocument(const DecoderWeights& weights, const at::Tensor& ids) {
  const ModelConfig& c = weights.config;
  const int64_t length = ids.size(0);
  at::Tensor x = weights.embedding.index({ids});
  for (const LayerWeights& layer : weights.layers) {
    const at::Tensor normed = PlainNorm(x, layer.input_norm, c.rms_norm_eps);
    const auto heads = [&](const at::Tensor& w, int64_t n) {
      return at::matmul(normed, w.t()).view({length, n, c.head_dim});
    };
    const at::Tensor q = PlainRotate(heads(layer.q, c.heads), c.rope_theta).transpose(0, 1);
    const int64_t times = c.heads / c.kv_heads;
    const at::Tensor k = PlainRotate(heads(layer.k, c.kv_heads), c.rope_theta)
                             .transpose(0, 1)
                             .repeat_interleave(times, 0);
    const at::Tensor v = heads(layer.v, c.kv_heads).transpose(0, 1).repeat_interleave(times, 0);
    at::Tensor scores = at::matmul(q, k.transpose(1, 2)) / std::sqrt(double(c.head_dim));
    scores = scores + at::full({length, length}, -1e30, scores.options()).triu(1);
    const at::Tensor attended = at::matmul(at::softmax(scores, -1), v)
                                    .transpose(0, 1)
                                    .reshape({length, c.heads * c.head_dim});
    x = x + at::matmul(attended, layer.o.t());
    const at::Tensor again = PlainNorm(x, layer.attention_norm, c.rms_norm_eps);
    const at::Tensor gated =
        at::silu(at::matmul(again, layer.gate.t())) * at::matmul(again, layer.up.t());
    x = x + at::matmul(gated, layer.down.t());
  }
  return PlainNorm(x, weights.final_norm, c.rms_norm_eps);
}

at::Tensor PlainForward(const DecoderWeights& weights, const DecoderBatch& batch) {
  std::vector<at::Tensor> documents;
  int64_t begin = 0;
  for (const int64_t length : batch.lengths) {
    documents.push_back(PlainDocument(weights, batch.ids.narrow(0, begin, length)));
    begin += length;
  }
  return at::cat(documents);
}

// The same weights in another dtype, as leaves that want gradients.
DecoderWeights AsLeaves(const DecoderWeights& weights, at::ScalarType dtype) {
  std::vector<NamedTensor> named = weights.Named();
  size_t next = 0;
  DecoderWeights leaves = weights;
  std::vector<at::Tensor> tensors;
  for (const NamedTensor& item : named) {
    tensors.push_back(item.tensor.detach().to(dtype, /*non_blocking=*/false, /*copy=*/true));
    tensors.back().requires_grad_(true);
  }
  leaves.embedding = leaves.head = tensors[next++];
  for (LayerWeights& layer : leaves.layers) {
    // config.Parameters() lists a layer's tensors in Hugging Face's order; Named() is the
    // authority, so place each by comparing storage.
    for (at::Tensor* slot : {&layer.input_norm, &layer.q, &layer.k, &layer.v, &layer.o,
                             &layer.attention_norm, &layer.gate, &layer.up, &layer.down}) {
      for (size_t i = 0; i < named.size(); ++i) {
        if (named[i].tensor.is_same(*slot)) {
          *slot = tensors[i];
          break;
        }
      }
    }
  }
  for (size_t i = 0; i < named.size(); ++i) {
    if (named[i].tensor.is_same(weights.final_norm)) leaves.final_norm = tensors[i];
  }
  return leaves;
}

TEST(DecoderTest, EqualsThePlainFormulaInFloat64) {
  const ModelConfig config = SmallConfig();
  const DecoderWeights weights = RandomDecoder(config, at::kFloat, 1);
  const DecoderBatch batch = RandomBatch(config, {5, 17, 17, 1, 9}, 2);
  const auto hidden = ForwardHidden(weights, batch);
  ASSERT_TRUE(hidden.ok()) << hidden.status();
  const at::Tensor expected = PlainForward(AsLeaves(weights, at::kDouble), batch);
  EXPECT_LT(Relative(*hidden, expected.detach()), 2e-6);
}

TEST(DecoderTest, GradientsEqualThePlainFormulasInFloat64) {
  const ModelConfig config = SmallConfig();
  const DecoderWeights seed = RandomDecoder(config, at::kFloat, 3);
  const DecoderWeights mine = AsLeaves(seed, at::kFloat), plain = AsLeaves(seed, at::kDouble);
  const DecoderBatch batch = RandomBatch(config, {6, 31, 31, 40}, 4);  // over kNormGradRows
  const auto hidden = ForwardHidden(mine, batch);
  ASSERT_TRUE(hidden.ok()) << hidden.status();
  at::matmul(*hidden, HeadWeight(mine).t()).square().mean().backward();
  at::matmul(PlainForward(plain, batch), plain.head.t()).square().mean().backward();
  const auto a = mine.Named(), b = plain.Named();
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_TRUE(a[i].tensor.grad().defined()) << a[i].name;
    EXPECT_LT(Relative(a[i].tensor.grad(), b[i].tensor.grad()), 1e-5) << a[i].name;
  }
}

TEST(DecoderTest, PackedEqualsUnpacked) {
  const ModelConfig config = SmallConfig();
  const DecoderWeights weights = RandomDecoder(config, at::kFloat, 5);
  const DecoderBatch batch = RandomBatch(config, {12, 12, 3, 40, 1, 12}, 6);
  const auto packed = ForwardHidden(weights, batch);
  ASSERT_TRUE(packed.ok()) << packed.status();
  int64_t begin = 0;
  for (const int64_t length : batch.lengths) {
    const auto alone = ForwardHidden(weights, {batch.ids.narrow(0, begin, length), {length}});
    ASSERT_TRUE(alone.ok()) << alone.status();
    EXPECT_LT(Relative(packed->narrow(0, begin, length), *alone), 1e-6) << "document at " << begin;
    begin += length;
  }
}

TEST(DecoderTest, ChangingOneDocumentLeavesTheOthersBitEqual) {
  const ModelConfig config = SmallConfig();
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const DecoderWeights weights = RandomDecoder(config, dtype, 7);
    const DecoderBatch batch = RandomBatch(config, {16, 16, 9, 16}, 8);
    DecoderBatch changed{batch.ids.clone(), batch.lengths};
    changed.ids.narrow(0, 16, 16).copy_(RandomBatch(config, {16}, 9).ids);
    const auto before = ForwardHidden(weights, batch), after = ForwardHidden(weights, changed);
    ASSERT_TRUE(before.ok() && after.ok());
    EXPECT_TRUE(at::equal(before->narrow(0, 0, 16), after->narrow(0, 0, 16)));
    EXPECT_FALSE(at::equal(before->narrow(0, 16, 16), after->narrow(0, 16, 16)));
    EXPECT_TRUE(at::equal(before->narrow(0, 32, 25), after->narrow(0, 32, 25)));
  }
}

TEST(DecoderTest, AStateDependsOnEarlierTokensOnly) {
  const ModelConfig config = SmallConfig();
  const DecoderWeights weights = RandomDecoder(config, at::kFloat, 10);
  const DecoderBatch batch = RandomBatch(config, {20}, 11);
  DecoderBatch changed{batch.ids.clone(), batch.lengths};
  changed.ids.mutable_data_ptr<int64_t>()[12] = (batch.ids[12].item<int64_t>() + 1) % 97;
  const auto before = ForwardHidden(weights, batch), after = ForwardHidden(weights, changed);
  ASSERT_TRUE(before.ok() && after.ok());
  EXPECT_TRUE(at::equal(before->narrow(0, 0, 12), after->narrow(0, 0, 12)));
  for (int64_t t = 12; t < 20; ++t) EXPECT_FALSE(at::equal((*before)[t], (*after)[t])) << t;
}

TEST(DecoderTest, TheHookSeesTheResidualStreamOfEachLayer) {
  const ModelConfig config = SmallConfig();
  const DecoderWeights weights = RandomDecoder(config, at::kFloat, 12);
  const DecoderBatch batch = RandomBatch(config, {11}, 13);
  std::vector<at::Tensor> inputs, outputs;
  const auto hidden = ForwardHidden(
      weights, batch, [&](int64_t layer, const at::Tensor& input, const at::Tensor& output) {
        EXPECT_EQ(layer, static_cast<int64_t>(inputs.size()));
        inputs.push_back(input);
        outputs.push_back(output);
      });
  ASSERT_TRUE(hidden.ok());
  ASSERT_EQ(inputs.size(), 2u);
  EXPECT_TRUE(at::equal(inputs[0], weights.embedding.index({batch.ids})));
  EXPECT_TRUE(at::equal(inputs[1], outputs[0]));
  EXPECT_LT(Relative(PlainNorm(outputs[1], weights.final_norm, config.rms_norm_eps), *hidden),
            1e-6);
}

TEST(DecoderTest, KeptLayersAreTheOnesAsked) {
  const ModelConfig config = SmallConfig();
  const DecoderWeights weights = RandomDecoder(config, at::kFloat, 14);
  const auto second = KeepLayers(weights, {1});
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(second->config.layers, 1);
  EXPECT_TRUE(second->layers[0].q.is_same(weights.layers[1].q));
  EXPECT_THAT(KeepLayers(weights, {1, 0}).status().message(), HasSubstr("must ascend"));
  EXPECT_THAT(KeepLayers(weights, {2}).status().message(), HasSubstr("below 2"));
  EXPECT_FALSE(KeepLayers(weights, {}).ok());
}

TEST(DecoderTest, RefusesABatchThatIsNotAsStated) {
  const ModelConfig config = SmallConfig();
  const DecoderWeights weights = RandomDecoder(config, at::kFloat, 15);
  DecoderBatch batch = RandomBatch(config, {8}, 16);
  batch.lengths = {7};
  EXPECT_EQ(ForwardHidden(weights, batch).status().code(), absl::StatusCode::kInvalidArgument);
  batch.lengths = {8, 0};
  EXPECT_THAT(ForwardHidden(weights, batch).status().message(), HasSubstr("document of 0 tokens"));
  batch.lengths = {8};
  batch.ids.mutable_data_ptr<int64_t>()[3] = 97;
  EXPECT_THAT(ForwardHidden(weights, batch).status().message(), HasSubstr("token id 97 at 3"));
  const DecoderBatch longer = RandomBatch(config, {65}, 17);
  EXPECT_THAT(ForwardHidden(weights, longer).status().message(), HasSubstr("takes 1 to 64"));
}

// Capture pads documents to the length of their batch, students leave out the last token, which
// nothing follows: what the others mean must not change by it.
TEST(DecoderTest, DynamicRopeTurnsByTheWholeDocument) {
  ModelConfig config = SmallConfig();
  config.max_positions = 16;
  config.rope = {.kind = RopeScaling::Kind::kDynamic, .factor = 4};
  const DecoderWeights weights = RandomDecoder(config, at::kFloat, 18);
  const DecoderBatch batch = RandomBatch(config, {40, 40, 40}, 19);
  const std::vector<int64_t> real = {40, 25, 12};
  const auto padded = ForwardHidden(weights, {batch.ids, batch.lengths, real});
  ASSERT_TRUE(padded.ok()) << padded.status();
  for (int64_t i = 0; i < 3; ++i) {
    const int64_t length = real[static_cast<size_t>(i)];
    const auto alone = ForwardHidden(weights, {batch.ids.narrow(0, 40 * i, length), {length}});
    ASSERT_TRUE(alone.ok()) << alone.status();
    EXPECT_LT(Relative(padded->narrow(0, 40 * i, length), *alone), 1e-6) << length;
  }
  const at::Tensor cut = at::cat({batch.ids.narrow(0, 0, 39), batch.ids.narrow(0, 40, 24)});
  const auto shorter = ForwardHidden(weights, {cut, {39, 24}, {40, 25}});
  ASSERT_TRUE(shorter.ok()) << shorter.status();
  EXPECT_LT(Relative(shorter->narrow(0, 0, 39), padded->narrow(0, 0, 39)), 1e-6);
  EXPECT_LT(Relative(shorter->narrow(0, 39, 24), padded->narrow(0, 40, 24)), 1e-6);
  EXPECT_FALSE(ForwardHidden(weights, {batch.ids, batch.lengths, {40, 65, 12}}).ok());
  EXPECT_FALSE(ForwardHidden(weights, {batch.ids, batch.lengths, {40, 0, 12}}).ok());
  EXPECT_FALSE(ForwardHidden(weights, {batch.ids, batch.lengths, {40}}).ok());
}

// Blocks of queries against the part of the keys that they see: longer than one block.
TEST(DecoderTest, AWindowOverManyBlocksIsTheMaskOverAll) {
  for (const int64_t window : {1, 7, 255, 256, 300, 600}) {
    const at::Tensor q = at::randn({2 * 600, 3, 4}), k = at::randn({2 * 600, 1, 4});
    const at::Tensor v = at::randn({2 * 600, 1, 4});
    const at::Tensor got = AttendDocuments(q, k, v, /*documents=*/2, window);
    const auto split = [](const at::Tensor& x) {
      return x.to(at::kDouble).view({2, 600, x.size(1), 4}).transpose(1, 2);
    };
    const at::Tensor place = at::arange(600);
    const at::Tensor back = place.unsqueeze(1) - place.unsqueeze(0);
    const at::Tensor scores = at::matmul(split(q), split(k).transpose(2, 3)) / 2.0;
    const at::Tensor seen = scores.masked_fill(back.lt(0).logical_or(back.ge(window)), -INFINITY);
    const at::Tensor want = at::matmul(at::softmax(seen, -1), split(v));
    EXPECT_LT(Relative(got, want.transpose(1, 2).reshape({2 * 600, 12})), 1e-6) << window;
  }
}

TEST(DecoderTest, RefusesTensorsOfAnotherShapeOrDtype) {
  const ModelConfig config = SmallConfig();
  const auto bind = [&](int64_t extra, at::ScalarType odd) {
    return BindDecoder(config, [&](const ModelConfig::Parameter& p) -> absl::StatusOr<at::Tensor> {
      std::vector<int64_t> shape = p.shape;
      if (p.name == "model.norm.weight") shape[0] += extra;
      const bool last = p.name == "model.norm.weight";
      return at::zeros(shape, at::TensorOptions().dtype(last ? odd : at::kFloat));
    });
  };
  EXPECT_TRUE(bind(0, at::kFloat).ok());
  EXPECT_THAT(bind(1, at::kFloat).status().message(),
              HasSubstr("model.norm.weight: expected the shape [48]"));
  EXPECT_THAT(bind(0, at::kBFloat16).status().message(),
              HasSubstr("model.norm.weight: all tensors"));
}

// The reference rounds to bf16 after the normalisation and again after the weight.
TEST(OpsTest, Bf16NormRoundsWhereTransformersDoes) {
  const at::Tensor x = at::randn({33, 48}).mul(3.0).to(at::kBFloat16);
  const at::Tensor w = at::randn({48}).to(at::kBFloat16);
  const at::Tensor x32 = x.to(at::kFloat);
  const at::Tensor expected =
      w * (x32 * at::rsqrt(x32.pow(2).mean(-1, true) + 1e-5)).to(at::kBFloat16);
  const at::Tensor got = ops::RmsNorm(x, w, 1e-5);
  // The sum of squares is taken in another order, which may move a value across a rounding
  // boundary.
  EXPECT_LT(Relative(got, expected), 1.0 / 128);
  EXPECT_GT(got.eq(expected).to(at::kDouble).mean().item<double>(), 0.99);
}

TEST(OpsTest, Bf16RotationAndSwiGluEqualTheirRoundedFormulas) {
  const at::Tensor x = at::randn({40, 3, 16}).to(at::kBFloat16);
  ModelConfig config;
  config.head_dim = 16;
  const ops::RotaryTable table = MakeRotaryTable(config, 40, 40, at::kBFloat16);
  const at::Tensor c = table.cos.to(at::kBFloat16).unsqueeze(1);
  const at::Tensor s = table.sin.to(at::kBFloat16).unsqueeze(1);
  const at::Tensor a = x.narrow(2, 0, 8), b = x.narrow(2, 8, 8);
  const at::Tensor position = at::arange(40, at::TensorOptions().dtype(at::kInt));
  EXPECT_TRUE(
      at::equal(ops::Rotate(x, table, position), at::cat({a * c - b * s, b * c + a * s}, 2)));

  const at::Tensor gate = at::randn({50, 31}).mul(4.0), up = at::randn({50, 31});
  EXPECT_LT(Relative(ops::SwiGlu(gate, up), at::silu(gate.to(at::kDouble)) * up), 1e-6);
}

TEST(OpsTest, RefusesOtherDtypes) {
  const at::Tensor x = at::zeros({2, 4}, at::TensorOptions().dtype(at::kDouble));
  EXPECT_ANY_THROW(ops::SwiGlu(x, x));
}

}  // namespace
}  // namespace stillhouse

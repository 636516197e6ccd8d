#include "student/planned/step_weights.h"

#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace stillhouse::planned {
namespace {

template <typename T>
class Finder {
 public:
  Finder(const ModelConfig& config, const FlatLayout& layout, const TensorView& weights) {
    const auto* data = static_cast<const T*>(weights.data);
    const std::vector<FlatParameter>& places = layout.parameters();
    std::map<std::string, size_t> index;
    for (size_t i = 0; i < places.size(); ++i) index[places[i].name] = i;
    for (const ModelConfig::Parameter& parameter : config.Parameters()) {
      Weight<T>& weight = found_[parameter.name];
      weight.index = index.at(parameter.name);
      weight.data = data + places[weight.index].offset;
      weight.rows = parameter.shape[0];
      weight.columns = parameter.shape.size() == 1 ? 1 : parameter.shape[1];
    }
  }

  // None where the model lacks it.
  Weight<T> Find(const std::string& name) const {
    const auto found = found_.find(name);
    return found == found_.end() ? Weight<T>() : found->second;
  }
  Weight<T> Need(const std::string& name) const {
    const auto found = found_.find(name);
    SH_CHECK(found != found_.end(), name);
    return found->second;
  }

  ProjectionGroup<T> Group(const std::string& prefix, std::vector<std::string> names) const {
    ProjectionGroup<T> group;
    group.contiguous = true;
    for (const std::string& name : names) {
      const Weight<T> weight = Need(absl::StrCat(prefix, name, ".weight"));
      if (!group.weights.empty()) {
        const Weight<T>& before = group.weights.back();
        group.contiguous = group.contiguous && weight.data == before.data + before.count();
      }
      group.weights.push_back(weight);
      group.biases.push_back(Find(absl::StrCat(prefix, name, ".bias")));
      if (group.biases.back().data != nullptr) group.contiguous = false;
      group.outputs += weight.rows;
    }
    return group;
  }

 private:
  std::map<std::string, Weight<T>> found_;
};

}  // namespace

template <typename T>
StepWeights<T>::StepWeights(const ModelConfig& config, const FlatLayout& layout,
                            const TensorView& weights) {
  SH_CHECK(weights.count == layout.size() && DTypeSize(weights.dtype) == sizeof(T));
  const Finder<T> finder(config, layout, weights);
  for (int64_t i = 0; i < config.layers; ++i) {
    const std::string prefix = absl::StrCat("model.layers.", i, ".");
    LayerWeightsOf<T> layer;
    layer.input_norm = finder.Need(prefix + "input_layernorm.weight");
    layer.attention_norm = finder.Need(prefix + "post_attention_layernorm.weight");
    layer.q_norm = finder.Find(prefix + "self_attn.q_norm.weight");
    layer.k_norm = finder.Find(prefix + "self_attn.k_norm.weight");
    layer.attention = finder.Group(prefix + "self_attn.", {"v_proj", "k_proj", "q_proj"});
    layer.output = finder.Group(prefix + "self_attn.", {"o_proj"});
    layer.gated = finder.Group(prefix + "mlp.", {"up_proj", "gate_proj"});
    layer.down = finder.Group(prefix + "mlp.", {"down_proj"});
    layers.push_back(std::move(layer));
  }
  embedding = finder.Need("model.embed_tokens.weight");
  final_norm = finder.Need("model.norm.weight");
  head = config.tie_embeddings ? embedding : finder.Need("lm_head.weight");
}

template struct StepWeights<float>;
template struct StepWeights<uint16_t>;

}  // namespace stillhouse::planned

#include "formats/model_diff.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "common/status.h"
#include "formats/json.h"
#include "formats/load_tensors.h"
#include "formats/parallel_blocks.h"

namespace stillhouse {
namespace {

// Keys of config.json that say nothing of their own: how tensors are stored shows in the tensors,
// and the older spellings of RoPE's numbers stand in `rope_parameters` too.
constexpr absl::string_view kPassedOver[] = {"dtype", "torch_dtype", "rope_theta", "rope_scaling"};

std::string DiffTokenizers(const Tokenizer* a, const Tokenizer* b) {
  if (a == nullptr || b == nullptr) return a == b ? "" : "one model has no tokenizer";
  const bool same = a->Fingerprint() == b->Fingerprint();
  if (!same) {
    for (int32_t id = 0; id < std::min(a->size(), b->size()); ++id) {
      const std::string token_a = a->TokenBytes(id), token_b = b->TokenBytes(id);
      if (token_a == token_b) continue;
      return absl::StrCat("id ", id, " is \"", absl::CHexEscape(token_a.substr(0, 80)),
                          "\" in A and \"", absl::CHexEscape(token_b.substr(0, 80)), "\" in B");
    }
    if (a->size() != b->size()) {
      return absl::StrCat(a->size(), " tokens in A and ", b->size(), " in B, the first alike");
    }
    return "the same tokens, cut or merged in another way";
  }
  const auto list = [](absl::Span<const int32_t> ids) {
    return std::vector<int32_t>(ids.begin(), ids.end());
  };
  if (list(a->prefix()) == list(b->prefix()) && list(a->suffix()) == list(b->suffix())) return "";
  return "the same tokens, but other ones put before or after a text";
}

void AddBlock(absl::Span<const float> a, absl::Span<const float> b, TensorDifference& sum) {
  double max = 0, squares = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    if (std::isfinite(difference)) {
      max = std::max(max, difference);
      squares += difference * difference;
    } else if (a[i] != b[i] && !(std::isnan(a[i]) && std::isnan(b[i]))) {
      ++sum.not_finite;
    }
  }
  sum.max = std::max(sum.max, max);
  sum.sum_of_squares += squares;
}

// One block's part; the sums of a tensor are added up in the order of blocks, so that they do not
// depend on the threads.
absl::Status CompareValues(const Weights& a, const Weights& b,
                           std::vector<TensorDifference>& tensors) {
  std::vector<const TensorInfo*> common;
  std::vector<size_t> place;  // in `tensors`, of each common tensor
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!tensors[i].Comparable()) continue;
    common.push_back(a.Find(tensors[i].name));
    place.push_back(i);
    tensors[i].count = common.back()->Count();
  }
  const std::vector<RowBlock> blocks = RowBlocksOf(common);
  std::vector<TensorDifference> parts(blocks.size());
  SH_RETURN_IF_ERROR(ForEachBlock(blocks.size(), [&](size_t i) -> absl::Status {
    const RowBlock& block = blocks[i];
    const TensorInfo& info = *common[block.tensor];
    const auto count = static_cast<size_t>(block.rows * (info.Count() / info.Rows()));
    std::vector<float> values_a(count), values_b(count);
    SH_RETURN_IF_ERROR(a.ReadRowsF32(info.name, block.first, absl::MakeSpan(values_a)));
    SH_RETURN_IF_ERROR(b.ReadRowsF32(info.name, block.first, absl::MakeSpan(values_b)));
    GiveBackRows(a, info, block);
    GiveBackRows(b, info, block);
    AddBlock(values_a, values_b, parts[i]);
    return absl::OkStatus();
  }));
  for (size_t i = 0; i < blocks.size(); ++i) {
    TensorDifference& tensor = tensors[place[blocks[i].tensor]];
    tensor.max = std::max(tensor.max, parts[i].max);
    tensor.sum_of_squares += parts[i].sum_of_squares;
    tensor.not_finite += parts[i].not_finite;
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<FieldDifference> DiffConfigs(const ModelConfig& a, const ModelConfig& b) {
  const Json json_a = Json::parse(ConfigToJson(a)), json_b = Json::parse(ConfigToJson(b));
  std::set<std::string> keys;
  for (const Json* json : {&json_a, &json_b}) {
    for (const auto& [key, value] : json->items()) keys.insert(key);
  }
  for (const absl::string_view key : kPassedOver) keys.erase(std::string(key));
  std::vector<FieldDifference> differences;
  const auto value = [](const Json& json, const std::string& key) {
    return json.contains(key) ? json[key].dump() : std::string("missing");
  };
  for (const std::string& key : keys) {
    FieldDifference field = {key, value(json_a, key), value(json_b, key)};
    if (field.a != field.b) differences.push_back(std::move(field));
  }
  return differences;
}

double TensorDifference::Rms() const {
  const auto finite = static_cast<double>(count - not_finite);
  return finite > 0 ? std::sqrt(sum_of_squares / finite) : 0;
}

TensorDifference ModelDifference::Overall() const {
  TensorDifference all;
  for (const TensorDifference& tensor : tensors) {
    all.count += tensor.count;
    all.max = std::max(all.max, tensor.max);
    all.sum_of_squares += tensor.sum_of_squares;
    all.not_finite += tensor.not_finite;
  }
  return all;
}

bool ModelDifference::Same(double tolerance) const {
  if (!architecture.empty() || !tokenizer.empty()) return false;
  return std::all_of(tensors.begin(), tensors.end(), [&](const TensorDifference& tensor) {
    return tensor.Comparable() && tensor.not_finite == 0 && tensor.max <= tolerance;
  });
}

absl::StatusOr<ModelDifference> DiffModels(const ModelFiles& a, const ModelFiles& b) {
  ModelDifference difference;
  difference.architecture = DiffConfigs(a.config, b.config);
  difference.tokenizer = DiffTokenizers(a.tokenizer.get(), b.tokenizer.get());
  for (const TensorInfo& info : a.weights->tensors()) {
    TensorDifference tensor;
    tensor.name = info.name;
    tensor.dtype_a = info.stored_dtype;
    tensor.shape_a = info.shape;
    if (const TensorInfo* other = b.weights->Find(info.name); other != nullptr) {
      tensor.dtype_b = other->stored_dtype;
      tensor.shape_b = other->shape;
    }
    difference.tensors.push_back(std::move(tensor));
  }
  for (const TensorInfo& info : b.weights->tensors()) {
    if (a.weights->Find(info.name) != nullptr) continue;
    TensorDifference tensor;
    tensor.name = info.name;
    tensor.dtype_b = info.stored_dtype;
    tensor.shape_b = info.shape;
    difference.tensors.push_back(std::move(tensor));
  }
  SH_RETURN_IF_ERROR(CompareValues(*a.weights, *b.weights, difference.tensors));
  return difference;
}

}  // namespace stillhouse

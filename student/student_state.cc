#include "student/student_state.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "common/random.h"
#include "common/status.h"
#include "formats/json.h"
#include "student/student_model.h"

namespace stillhouse {
namespace {

constexpr absl::string_view kLayerPrefix = "model.layers.";
constexpr double kInitialDeviation = 0.02;

// The teacher's name of a student's parameter.
std::string TeacherName(const std::string& name, const std::vector<int64_t>& teacher_layers) {
  if (name.rfind(std::string(kLayerPrefix), 0) != 0) return name;
  const size_t dot = name.find('.', kLayerPrefix.size());
  SH_CHECK(dot != std::string::npos, name);
  const auto layer = std::stoul(name.substr(kLayerPrefix.size(), dot - kLayerPrefix.size()));
  SH_CHECK(layer < teacher_layers.size(), name);
  return absl::StrCat(kLayerPrefix, teacher_layers[layer], name.substr(dot));
}

void DrawParameter(const ModelConfig::Parameter& parameter, uint64_t seed,
                   absl::Span<float> values) {
  if (parameter.shape.size() == 1) {
    std::fill(values.begin(), values.end(), parameter.IsBias() ? 0.0f : 1.0f);
    return;
  }
  RandomStream random(DeriveSeed(seed, absl::StrCat("initial ", parameter.name)));
  for (float& value : values) value = static_cast<float>(random.NextNormal() * kInitialDeviation);
}

}  // namespace

StudentState::StudentState(const ModelConfig& config, DType compute, const ShardOptions& shard)
    : layout(StudentLayout(config)),
      plan(layout, shard.ranks, shard.buckets),
      rank(shard.rank),
      pieces(plan.PiecesOf(shard.rank)),
      masters(plan.ShardSize(rank)),
      first(masters.size()),
      second(masters.size()),
      gradients(masters.size()),
      weights(compute == DType::kBF16 ? layout.size() : 0),
      wide_weights(compute == DType::kF32 && masters.size() < layout.size() ? layout.size() : 0) {
  SH_CHECK(compute == DType::kBF16 || compute == DType::kF32);
}

TensorView StudentState::Weights() {
  if (weights.size() > 0) return {weights.data(), weights.size(), DType::kBF16};
  if (wide_weights.size() > 0) return {wide_weights.data(), wide_weights.size(), DType::kF32};
  return {masters.data(), masters.size(), DType::kF32};
}

ShardBuffers StudentState::Shard() {
  return {masters.span(), first.span(), second.span(), gradients.span(), Weights()};
}

void StudentState::RoundWeights() {
  for (const ShardPiece& piece : pieces) {
    const float* from = masters.data() + piece.local;
    for (size_t i = 0; i < piece.flat.size(); ++i) {
      if (weights.size() > 0) weights.data()[piece.flat.begin + i] = FloatToBf16(from[i]);
      if (wide_weights.size() > 0) wide_weights.data()[piece.flat.begin + i] = from[i];
    }
  }
}

absl::StatusOr<std::vector<double>> ParseInfluence(absl::string_view json, int64_t teacher_layers) {
  const auto damaged = [](absl::string_view what) {
    return absl::DataLossError(absl::StrCat("the teacher's block influence: ", what));
  };
  const absl::StatusOr<Json> parsed = ParseJson(json, "influence");
  if (!parsed.ok()) return damaged(parsed.status().message());
  if (!parsed->is_object() || !parsed->contains("influence") ||
      !(*parsed)["influence"].is_array()) {
    return damaged("no list \"influence\"");
  }
  std::vector<double> influence;
  for (const Json& value : (*parsed)["influence"]) {
    if (!value.is_number() || !std::isfinite(value.get<double>())) {
      return damaged("not a list of numbers");
    }
    influence.push_back(value.get<double>());
  }
  if (static_cast<int64_t>(influence.size()) != teacher_layers) {
    return damaged(absl::StrCat(influence.size(), " numbers for ", teacher_layers, " layers"));
  }
  return influence;
}

std::vector<int64_t> LayersOfHighestInfluence(absl::Span<const double> influence, int64_t keep) {
  std::vector<int64_t> layers(influence.size());
  std::iota(layers.begin(), layers.end(), int64_t{0});
  std::stable_sort(layers.begin(), layers.end(), [&](int64_t a, int64_t b) {
    return influence[static_cast<size_t>(a)] > influence[static_cast<size_t>(b)];
  });
  layers.resize(static_cast<size_t>(keep));
  std::sort(layers.begin(), layers.end());
  return layers;
}

bool NeedsInfluence(const InitRecipe& init) {
  return init.from == InitRecipe::From::kTeacher && init.layers.empty() && init.keep.has_value();
}

absl::StatusOr<StudentShape> ResolveShape(const StudentRecipe& student, const ModelConfig& teacher,
                                          absl::Span<const double> influence) {
  StudentShape shape;
  shape.config = teacher;
  shape.config.dtype = student.dtype == "bf16" ? "bfloat16" : "float32";
  const InitRecipe& init = student.init;
  const auto refuse = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("student ", student.name, ": ", what,
                                                   "; the teacher has layers 0 to ",
                                                   teacher.layers - 1));
  };
  if (init.keep.has_value() && (*init.keep < 1 || *init.keep > teacher.layers)) {
    return refuse(absl::StrCat("init.layers keeps ", *init.keep));
  }
  for (const int64_t layer : init.layers) {
    if (layer < 0 || layer >= teacher.layers) {
      return refuse(absl::StrCat("init.layers names layer ", layer));
    }
  }
  std::vector<int64_t> layers = init.layers;
  if (layers.empty() && init.keep.has_value() && NeedsInfluence(init)) {
    SH_CHECK(static_cast<int64_t>(influence.size()) == teacher.layers);
    layers = LayersOfHighestInfluence(influence, *init.keep);
  } else if (layers.empty()) {
    layers.resize(static_cast<size_t>(init.keep.value_or(teacher.layers)));
    std::iota(layers.begin(), layers.end(), int64_t{0});
  }
  shape.config = shape.config.WithLayers(layers);
  if (init.from == InitRecipe::From::kTeacher) shape.teacher_layers = std::move(layers);
  SH_RETURN_IF_ERROR(shape.config.Validate());
  return shape;
}

absl::Status InitialiseMasters(const StudentShape& shape, const Weights& teacher, uint64_t seed,
                               StudentState* state) {
  std::vector<float> values;  // of one parameter
  for (const ModelConfig::Parameter& parameter : shape.config.Parameters()) {
    const FlatParameter* place = state->layout.Find(parameter.name);
    SH_CHECK(place != nullptr, parameter.name);
    const FlatRange range{place->offset, place->offset + place->count};
    bool owned = false;
    ForOwned(state->pieces, range, [&](size_t, size_t, size_t) { owned = true; });
    const std::string name =
        shape.teacher_layers.empty() ? "" : TeacherName(parameter.name, shape.teacher_layers);
    if (!name.empty()) {
      const TensorInfo* info = teacher.Find(name);
      if (info == nullptr || static_cast<size_t>(info->Count()) != place->count) {
        return absl::InvalidArgumentError(
            absl::StrCat("the teacher has no tensor ", name, " of the student's size"));
      }
    }
    if (!owned) continue;
    values.resize(place->count);
    if (name.empty()) {
      DrawParameter(parameter, seed, absl::MakeSpan(values));
    } else {
      SH_RETURN_IF_ERROR_AT(teacher.ReadF32(name, absl::MakeSpan(values)),
                            "reading the teacher's weights");
    }
    ForOwned(state->pieces, range, [&](size_t flat, size_t local, size_t count) {
      std::copy_n(values.data() + (flat - place->offset), count, state->masters.data() + local);
    });
  }
  state->RoundWeights();
  return absl::OkStatus();
}

std::vector<TensorToWrite> TensorsOf(const ModelConfig& config, StudentState& state) {
  const TensorView weights = state.Weights();
  const bool is_bf16 = weights.dtype == DType::kBF16;
  std::vector<TensorToWrite> tensors;
  for (const ModelConfig::Parameter& parameter : config.Parameters()) {
    const FlatParameter* place = state.layout.Find(parameter.name);
    SH_CHECK(place != nullptr, parameter.name);
    tensors.push_back({parameter.name, parameter.shape, is_bf16 ? "BF16" : "F32",
                       [weights, is_bf16, place = *place](absl::Span<float> out) -> absl::Status {
                         SH_CHECK(out.size() == place.count);
                         if (!is_bf16) {
                           const float* from = static_cast<const float*>(weights.data);
                           std::copy_n(from + place.offset, place.count, out.begin());
                           return absl::OkStatus();
                         }
                         const auto* from = static_cast<const uint16_t*>(weights.data);
                         for (size_t i = 0; i < out.size(); ++i) {
                           out[i] = Bf16ToFloat(from[place.offset + i]);
                         }
                         return absl::OkStatus();
                       }});
  }
  return tensors;
}

}  // namespace stillhouse

#include "formats/rope_json.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_join.h"
#include "common/status.h"

namespace stillhouse {
namespace {

using Kind = RopeScaling::Kind;

constexpr Kind kKinds[] = {Kind::kDefault, Kind::kLinear, Kind::kDynamic, Kind::kYarn,
                           Kind::kLlama3};
constexpr char kOriginal[] = "original_max_position_embeddings";

std::vector<absl::string_view> KeysOf(Kind kind) {
  switch (kind) {
    case Kind::kDefault:
      return {};
    case Kind::kLinear:
      return {"factor"};
    case Kind::kDynamic:
      return {"factor", kOriginal};
    case Kind::kYarn:
      return {"factor",    kOriginal, "attention_factor", "beta_fast",
              "beta_slow", "mscale",  "mscale_all_dim",   "truncate"};
    case Kind::kLlama3:
      return {"factor", kOriginal, "low_freq_factor", "high_freq_factor"};
  }
  return {};
}

// One object of either dialect. `where` is its key in config.json.
struct RopeObject {
  const Json& json;
  JsonFields fields;
  absl::string_view path, where;
};

// transformers 4 lets `type` win, 5 lets `rope_type`.
absl::StatusOr<Kind> ReadKind(const RopeObject& object) {
  SH_ASSIGN_OR_RETURN(const std::optional<std::string> now, object.fields.String("rope_type"));
  SH_ASSIGN_OR_RETURN(const std::optional<std::string> before, object.fields.String("type"));
  if (now.has_value() && before.has_value() && *now != *before) {
    return absl::InvalidArgumentError(absl::StrCat(object.path, ": `", object.where,
                                                   "` is of rope_type \"", *now,
                                                   "\" and of type \"", *before, "\""));
  }
  const std::string name = now.has_value() ? *now : before.value_or("default");
  for (const Kind kind : kKinds) {
    if (name == RopeKindName(kind)) return kind;
  }
  return absl::UnimplementedError(absl::StrCat(
      object.path, ": RoPE kind \"", name, "\" (`", object.where, "`) is not implemented, only ",
      absl::StrJoin(kKinds, ", ", [](std::string* out, Kind kind) {
        absl::StrAppend(out, "\"", RopeKindName(kind), "\"");
      })));
}

absl::Status RefuseOtherKeys(const RopeObject& object, Kind kind) {
  const std::vector<absl::string_view> keys = KeysOf(kind);
  for (const auto& [key, value] : object.json.items()) {
    const bool common = key == "rope_type" || key == "type" || key == "rope_theta" ||
                        key == "partial_rotary_factor";
    if (common || value.is_null() || std::find(keys.begin(), keys.end(), key) != keys.end()) {
      continue;
    }
    return absl::UnimplementedError(
        absl::StrCat(object.path, ": `", key.substr(0, 80), "` of `", object.where,
                     "` is not implemented for RoPE kind \"", RopeKindName(kind), "\""));
  }
  SH_ASSIGN_OR_RETURN(const std::optional<double> partial,
                      object.fields.Number("partial_rotary_factor"));
  if (partial.value_or(1.0) == 1.0) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat(object.path, ": partial_rotary_factor ", *partial, " is not implemented"));
}

absl::StatusOr<double> Required(const RopeObject& object, absl::string_view key) {
  SH_ASSIGN_OR_RETURN(const std::optional<double> value, object.fields.Number(key));
  if (value.has_value()) return *value;
  return absl::InvalidArgumentError(
      absl::StrCat(object.path, ": `", key, "` of `", object.where, "` is missing"));
}

absl::Status ReadYarn(const RopeObject& object, RopeScaling& rope) {
  // A zero is as good as nothing, as in `transformers`.
  const auto number = [&](absl::string_view key, double otherwise) -> absl::StatusOr<double> {
    SH_ASSIGN_OR_RETURN(const std::optional<double> value, object.fields.Number(key));
    return value.value_or(0) == 0 ? otherwise : *value;
  };
  SH_ASSIGN_OR_RETURN(rope.beta_fast, number("beta_fast", rope.beta_fast));
  SH_ASSIGN_OR_RETURN(rope.beta_slow, number("beta_slow", rope.beta_slow));
  SH_ASSIGN_OR_RETURN(const std::optional<bool> truncate, object.fields.Bool("truncate"));
  rope.truncate = truncate.value_or(true);
  SH_ASSIGN_OR_RETURN(const std::optional<double> given, object.fields.Number("attention_factor"));
  SH_ASSIGN_OR_RETURN(const double weight, number("mscale", 0));
  SH_ASSIGN_OR_RETURN(const double all_dim, number("mscale_all_dim", 0));
  if (given.has_value()) {
    rope.attention_factor = *given;
  } else if (weight != 0 && all_dim != 0) {
    rope.attention_factor =
        YarnMagnitude(rope.factor, weight) / YarnMagnitude(rope.factor, all_dim);
  } else {
    rope.attention_factor = YarnMagnitude(rope.factor, 1);
  }
  return absl::OkStatus();
}

absl::StatusOr<RopeScaling> ReadScaling(const RopeObject& object, int64_t max_positions) {
  RopeScaling rope;
  SH_ASSIGN_OR_RETURN(rope.kind, ReadKind(object));
  SH_RETURN_IF_ERROR(RefuseOtherKeys(object, rope.kind));
  if (rope.kind == Kind::kDefault) return rope;
  SH_ASSIGN_OR_RETURN(rope.factor, Required(object, "factor"));
  SH_ASSIGN_OR_RETURN(const std::optional<int64_t> original, object.fields.Int(kOriginal));
  if (rope.kind == Kind::kDynamic && original.value_or(max_positions) != max_positions) {
    return absl::UnimplementedError(absl::StrCat(object.path, ": ", kOriginal, " ", *original,
                                                 " of dynamic RoPE is not implemented where "
                                                 "max_position_embeddings is ",
                                                 max_positions));
  }
  if (rope.kind == Kind::kLinear || rope.kind == Kind::kDynamic) return rope;
  rope.original_positions = original.value_or(max_positions);
  if (rope.kind == Kind::kLlama3) {
    SH_ASSIGN_OR_RETURN(rope.low_freq_factor, Required(object, "low_freq_factor"));
    SH_ASSIGN_OR_RETURN(rope.high_freq_factor, Required(object, "high_freq_factor"));
    return rope;
  }
  SH_RETURN_IF_ERROR(ReadYarn(object, rope));
  return rope;
}

// Beside the RoPE objects: transformers 5 prefers it to theirs, 4 ignores it.
absl::Status CheckOuterOriginal(const JsonFields& fields, absl::string_view path,
                                const RopeScaling& rope) {
  SH_ASSIGN_OR_RETURN(const std::optional<int64_t> outer, fields.Int(kOriginal));
  const bool used = rope.kind == Kind::kYarn || rope.kind == Kind::kLlama3;
  if (!used || outer.value_or(rope.original_positions) == rope.original_positions) {
    return absl::OkStatus();
  }
  return absl::UnimplementedError(absl::StrCat(path, ": `", kOriginal, "` ", *outer,
                                               " beside the RoPE scaling, which has ",
                                               rope.original_positions, ", is not implemented"));
}

}  // namespace

double YarnMagnitude(double factor, double weight) {
  return factor <= 1 ? 1.0 : 0.1 * weight * std::log(factor) + 1.0;
}

absl::Status ReadRope(const JsonFields& fields, absl::string_view path, ModelConfig& config) {
  SH_ASSIGN_OR_RETURN(std::optional<double> theta, fields.Number("rope_theta"));
  std::optional<RopeScaling> scaling;
  for (const absl::string_view key : {"rope_scaling", "rope_parameters"}) {
    const Json* json = fields.Find(key);
    if (json == nullptr) continue;
    if (!json->is_object()) return fields.WrongType(key, "an object");
    const RopeObject object{*json, JsonFields(*json, path), path, key};
    SH_ASSIGN_OR_RETURN(const RopeScaling found, ReadScaling(object, config.max_positions));
    if (scaling.has_value() && *scaling != found) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": `rope_scaling` and `rope_parameters` differ"));
    }
    scaling = found;
    SH_ASSIGN_OR_RETURN(const std::optional<double> inner, object.fields.Number("rope_theta"));
    if (theta.has_value() && inner.has_value() && *theta != *inner) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": rope_theta is ", *theta, " and in `", key, "` ", *inner));
    }
    if (inner.has_value()) theta = inner;
  }
  config.rope_theta = theta.value_or(10000.0);
  config.rope = scaling.value_or(RopeScaling());
  return CheckOuterOriginal(fields, path, config.rope);
}

void WriteRope(const ModelConfig& config, Json& root) {
  const RopeScaling& rope = config.rope;
  Json scaling = {{"rope_type", RopeKindName(rope.kind)}};
  if (rope.kind != Kind::kDefault) scaling["factor"] = rope.factor;
  if (rope.kind == Kind::kYarn || rope.kind == Kind::kLlama3) {
    scaling[kOriginal] = rope.original_positions;
  }
  if (rope.kind == Kind::kYarn) {
    scaling["attention_factor"] = rope.attention_factor;
    scaling["beta_fast"] = rope.beta_fast;
    scaling["beta_slow"] = rope.beta_slow;
    if (!rope.truncate) scaling["truncate"] = false;  // unknown to older transformers
  }
  if (rope.kind == Kind::kLlama3) {
    scaling["low_freq_factor"] = rope.low_freq_factor;
    scaling["high_freq_factor"] = rope.high_freq_factor;
  }
  root["rope_theta"] = config.rope_theta;
  if (rope.kind != Kind::kDefault) root["rope_scaling"] = scaling;
  scaling["rope_theta"] = config.rope_theta;
  root["rope_parameters"] = std::move(scaling);
}

}  // namespace stillhouse

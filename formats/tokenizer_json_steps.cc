#include "formats/tokenizer_json_steps.h"

#include <algorithm>
#include <utility>

#include "absl/functional/function_ref.h"
#include "common/status.h"
#include "common/utf8.h"

namespace stillhouse {
namespace {

constexpr size_t kAffixMax = 64;  // ids that a post-processor puts before or after a text

// `visit` for the component, or for each part of a Sequence, whose list is called `list`.
absl::Status VisitParts(const Json& component, absl::string_view path, const char* list,
                        absl::FunctionRef<absl::Status(const Json&)> visit) {
  if (ComponentType(component) != "Sequence") return visit(component);
  const Json* parts = JsonFields(component, path).Find(list);
  if (parts == nullptr || !parts->is_array()) {
    return BrokenTokenizer(path, absl::StrCat("a Sequence has no `", list, "`"));
  }
  for (const Json& part : *parts) SH_RETURN_IF_ERROR(VisitParts(part, path, list, visit));
  return absl::OkStatus();
}

struct Pattern {
  bool is_regex;
  std::string text;
};

absl::StatusOr<Pattern> ParsePattern(const JsonFields& fields, absl::string_view path,
                                     absl::string_view owner) {
  const Json* pattern = fields.Find("pattern");
  if (pattern != nullptr && pattern->is_object() && pattern->size() == 1) {
    const JsonFields inner(*pattern, path);
    SH_ASSIGN_OR_RETURN(std::optional<std::string> regex, inner.String("Regex"));
    if (regex.has_value()) return Pattern{true, *std::move(regex)};
    SH_ASSIGN_OR_RETURN(std::optional<std::string> literal, inner.String("String"));
    if (literal.has_value()) return Pattern{false, *std::move(literal)};
  }
  return BrokenTokenizer(path, absl::StrCat("a ", owner, " has no `pattern`"));
}

// One character, such as the replacement of Metaspace.
absl::StatusOr<std::string> ParseCharacter(const JsonFields& fields, absl::string_view path,
                                           absl::string_view key) {
  SH_ASSIGN_OR_RETURN(std::string text, fields.RequiredString(key));
  if (text.empty() || static_cast<size_t>(Utf8Length(text)) != text.size()) {
    return BrokenTokenizer(path, absl::StrCat("`", key, "` must be one character"));
  }
  return text;
}

absl::StatusOr<NormalizerStep> ParseNormalizerStep(const Json& component, absl::string_view path) {
  constexpr std::pair<absl::string_view, UnicodeForm> kForms[] = {{"NFC", UnicodeForm::kNfc},
                                                                  {"NFD", UnicodeForm::kNfd},
                                                                  {"NFKC", UnicodeForm::kNfkc},
                                                                  {"NFKD", UnicodeForm::kNfkd}};
  const std::string type = ComponentType(component);
  const JsonFields fields(component, path);
  NormalizerStep step;
  for (const auto& [name, form] : kForms) {
    if (type != name) continue;
    step.form = form;
    return step;
  }
  if (type == "Prepend") {
    step.kind = NormalizerStep::Kind::kPrepend;
    SH_ASSIGN_OR_RETURN(step.content, fields.RequiredString("prepend"));
    if (step.content.empty()) return BrokenTokenizer(path, "a Prepend has nothing to prepend");
    return step;
  }
  if (type == "Replace") {
    SH_ASSIGN_OR_RETURN(Pattern pattern, ParsePattern(fields, path, type));
    step.kind = pattern.is_regex ? NormalizerStep::Kind::kReplacePattern
                                 : NormalizerStep::Kind::kReplaceLiteral;
    step.pattern = std::move(pattern.text);
    SH_ASSIGN_OR_RETURN(step.content, fields.RequiredString("content"));
    return step;
  }
  return LackingComponent(path, "normalizer", type);
}

absl::Status ParseBehavior(const JsonFields& fields, absl::string_view path, SplitStep& step) {
  using Behavior = SplitStep::Behavior;
  constexpr std::pair<absl::string_view, Behavior> kBehaviors[] = {
      {"Isolated", Behavior::kIsolated},
      {"Removed", Behavior::kRemoved},
      {"MergedWithPrevious", Behavior::kMergedWithPrevious},
      {"MergedWithNext", Behavior::kMergedWithNext},
      {"Contiguous", Behavior::kContiguous}};
  SH_ASSIGN_OR_RETURN(const std::string behavior, fields.RequiredString("behavior"));
  for (const auto& [name, value] : kBehaviors) {
    if (behavior != name) continue;
    step.behavior = value;
    return absl::OkStatus();
  }
  return LackingComponent(path, "Split behavior", behavior);
}

absl::Status ParseMetaspace(const JsonFields& fields, absl::string_view path, SplitStep& step) {
  step.kind = SplitStep::Kind::kMetaspace;
  step.behavior = SplitStep::Behavior::kMergedWithNext;
  SH_ASSIGN_OR_RETURN(step.pattern, ParseCharacter(fields, path, "replacement"));
  SH_ASSIGN_OR_RETURN(const std::optional<bool> cuts, fields.Bool("split"));
  step.split = cuts.value_or(true);
  SH_ASSIGN_OR_RETURN(const std::optional<std::string> scheme, fields.String("prepend_scheme"));
  const std::string prepends = scheme.value_or("always");
  if (prepends == "always") {
    step.prepend = SplitStep::Prepend::kAlways;
  } else if (prepends == "first") {
    step.prepend = SplitStep::Prepend::kFirst;
  } else if (prepends != "never") {
    return LackingComponent(path, "Metaspace `prepend_scheme`", prepends);
  }
  // Older files say only this.
  SH_ASSIGN_OR_RETURN(const std::optional<bool> prefix, fields.Bool("add_prefix_space"));
  if (prefix.has_value() && !*prefix) {
    if (scheme.has_value() && *scheme != "never") {
      return BrokenTokenizer(path, "a Metaspace's `add_prefix_space` contradicts `prepend_scheme`");
    }
    step.prepend = SplitStep::Prepend::kNever;
  }
  return absl::OkStatus();
}

absl::StatusOr<SplitStep> ParseSplitStep(const Json& component, absl::string_view path) {
  const std::string type = ComponentType(component);
  const JsonFields fields(component, path);
  SplitStep step;
  if (type == "Digits") {
    step.kind = SplitStep::Kind::kDigits;
    SH_ASSIGN_OR_RETURN(const std::optional<bool> each, fields.Bool("individual_digits"));
    step.individual_digits = each.value_or(false);
  } else if (type == "ByteLevel") {
    SH_ASSIGN_OR_RETURN(const std::optional<bool> prefix, fields.Bool("add_prefix_space"));
    step.add_prefix_space = prefix.value_or(true);
    SH_ASSIGN_OR_RETURN(const std::optional<bool> cut, fields.Bool("use_regex"));
    step.use_regex = cut.value_or(true);
  } else if (type == "Metaspace") {
    SH_RETURN_IF_ERROR(ParseMetaspace(fields, path, step));
  } else if (type == "Split") {
    SH_ASSIGN_OR_RETURN(Pattern pattern, ParsePattern(fields, path, type));
    step.kind = pattern.is_regex ? SplitStep::Kind::kPattern : SplitStep::Kind::kLiteral;
    step.pattern = std::move(pattern.text);
    SH_RETURN_IF_ERROR(ParseBehavior(fields, path, step));
    SH_ASSIGN_OR_RETURN(const std::optional<bool> inverted, fields.Bool("invert"));
    step.invert = inverted.value_or(false);
  } else {
    return LackingComponent(path, "pre_tokenizer", type);
  }
  return step;
}

absl::StatusOr<DecoderStep> ParseDecoderStep(const Json& component, absl::string_view path) {
  using Kind = DecoderStep::Kind;
  constexpr std::pair<absl::string_view, Kind> kPlain[] = {{"ByteLevel", Kind::kByteLevel},
                                                           {"ByteFallback", Kind::kByteFallback},
                                                           {"Fuse", Kind::kFuse}};
  const std::string type = ComponentType(component);
  const JsonFields fields(component, path);
  DecoderStep step;
  for (const auto& [name, kind] : kPlain) {
    if (type != name) continue;
    step.kind = kind;
    return step;
  }
  if (type == "Replace") {
    SH_ASSIGN_OR_RETURN(Pattern pattern, ParsePattern(fields, path, type));
    step.kind = pattern.is_regex ? Kind::kReplacePattern : Kind::kReplaceLiteral;
    step.pattern = std::move(pattern.text);
    SH_ASSIGN_OR_RETURN(step.content, fields.RequiredString("content"));
  } else if (type == "Strip") {
    step.kind = Kind::kStrip;
    SH_ASSIGN_OR_RETURN(step.content, ParseCharacter(fields, path, "content"));
    SH_ASSIGN_OR_RETURN(const std::optional<int64_t> start, fields.Int("start"));
    SH_ASSIGN_OR_RETURN(const std::optional<int64_t> stop, fields.Int("stop"));
    step.start = start.value_or(0);
    step.stop = stop.value_or(0);
  } else if (type == "Metaspace") {
    SplitStep metaspace;
    SH_RETURN_IF_ERROR(ParseMetaspace(fields, path, metaspace));
    step.kind = Kind::kMetaspace;
    step.pattern = metaspace.pattern;
    step.prepends = metaspace.prepend != SplitStep::Prepend::kNever;
  } else {
    return LackingComponent(path, "decoder", type);
  }
  return step;
}

// Ids from a list such as a template's, or [text, id].
absl::Status AddIds(const Json* ids, absl::string_view path, std::vector<int32_t>& out) {
  if (ids == nullptr || !ids->is_array() || out.size() + ids->size() > kAffixMax) {
    return BrokenTokenizer(path, "the post-processor's special tokens have no `ids`, or too many");
  }
  for (const Json& id : *ids) {
    if (id.is_string()) continue;
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= kTokenizerSizeMax) {
      return BrokenTokenizer(path, "the post-processor has an id that is no token's");
    }
    out.push_back(id.get<int32_t>());
  }
  return absl::OkStatus();
}

// What stands before and after the text where it is alone.
absl::Status ParseTemplate(const JsonFields& fields, absl::string_view path, TokenizerSpec& spec) {
  const Json* single = fields.Find("single");
  if (single == nullptr || !single->is_array()) {
    return BrokenTokenizer(path, "a TemplateProcessing has no `single`");
  }
  const Json* special = fields.Find("special_tokens");
  bool after = false;
  for (const Json& piece : *single) {
    if (piece.is_object() && piece.contains("Sequence")) {
      const auto id = JsonFields(piece["Sequence"], path).String("id");
      if (after || !id.ok() || id->value_or("") != "A") {
        return LackingComponent(path,
                                "a `single` template with other than one text:", piece.dump());
      }
      after = true;
      continue;
    }
    if (!piece.is_object() || !piece.contains("SpecialToken") || special == nullptr) {
      return BrokenTokenizer(path, "a TemplateProcessing names a token that it does not list");
    }
    SH_ASSIGN_OR_RETURN(const std::string name,
                        JsonFields(piece["SpecialToken"], path).RequiredString("id"));
    const Json* token = JsonFields(*special, path).Find(name);
    if (token == nullptr) {
      return BrokenTokenizer(path, "a TemplateProcessing names a token that it does not list");
    }
    SH_RETURN_IF_ERROR(
        AddIds(JsonFields(*token, path).Find("ids"), path, after ? spec.suffix : spec.prefix));
  }
  if (!after) return LackingComponent(path, "a `single` template", "without the text");
  return absl::OkStatus();
}

absl::Status ParsePostProcessorStep(const Json& component, absl::string_view path,
                                    TokenizerSpec& spec) {
  const std::string type = ComponentType(component);
  const JsonFields fields(component, path);
  if (type == "ByteLevel" || type == "RobertaProcessing") {
    SH_ASSIGN_OR_RETURN(const std::optional<bool> trims, fields.Bool("trim_offsets"));
    SH_ASSIGN_OR_RETURN(const std::optional<bool> prefix, fields.Bool("add_prefix_space"));
    if (trims.value_or(true)) spec.trims.push_back(prefix.value_or(true));
    if (type == "ByteLevel") return absl::OkStatus();
  }
  if (type == "TemplateProcessing") return ParseTemplate(fields, path, spec);
  if (type == "RobertaProcessing" || type == "BertProcessing") {
    SH_RETURN_IF_ERROR(AddIds(fields.Find("cls"), path, spec.prefix));
    return AddIds(fields.Find("sep"), path, spec.suffix);
  }
  return LackingComponent(path, "post_processor", type);
}

}  // namespace

std::string ComponentType(const Json& component) {
  if (!component.is_object()) return "?";
  const auto found = component.find("type");
  return found != component.end() && found->is_string() ? found->get<std::string>() : "?";
}

absl::Status BrokenTokenizer(absl::string_view path, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
}

absl::Status LackingComponent(absl::string_view path, absl::string_view what,
                              absl::string_view name) {
  return absl::UnimplementedError(
      absl::StrCat(path, ": ", what, " \"", name.substr(0, 80), "\" is not implemented"));
}

absl::Status ParseNormalizer(const Json& component, absl::string_view path, TokenizerSpec& spec) {
  return VisitParts(component, path, "normalizers", [&](const Json& part) -> absl::Status {
    SH_ASSIGN_OR_RETURN(NormalizerStep step, ParseNormalizerStep(part, path));
    spec.normalizer.push_back(std::move(step));
    return absl::OkStatus();
  });
}

absl::Status ParsePreTokenizer(const Json& component, absl::string_view path, TokenizerSpec& spec) {
  return VisitParts(component, path, "pretokenizers", [&](const Json& part) -> absl::Status {
    SH_ASSIGN_OR_RETURN(SplitStep step, ParseSplitStep(part, path));
    spec.steps.push_back(std::move(step));
    return absl::OkStatus();
  });
}

absl::Status ParseDecoder(const Json& component, absl::string_view path, TokenizerSpec& spec) {
  spec.decoder.clear();
  return VisitParts(component, path, "decoders", [&](const Json& part) -> absl::Status {
    SH_ASSIGN_OR_RETURN(DecoderStep step, ParseDecoderStep(part, path));
    spec.decoder.push_back(std::move(step));
    return absl::OkStatus();
  });
}

absl::Status ParsePostProcessor(const Json& component, absl::string_view path,
                                TokenizerSpec& spec) {
  return VisitParts(component, path, "processors", [&](const Json& part) -> absl::Status {
    TokenizerSpec one;
    SH_RETURN_IF_ERROR(ParsePostProcessorStep(part, path, one));
    if (!one.prefix.empty() || !one.suffix.empty()) {
      if (!spec.prefix.empty() || !spec.suffix.empty()) {
        return LackingComponent(path,
                                "a second post_processor that adds tokens:", ComponentType(part));
      }
      spec.prefix = std::move(one.prefix);
      spec.suffix = std::move(one.suffix);
    }
    spec.trims.insert(spec.trims.end(), one.trims.begin(), one.trims.end());
    return absl::OkStatus();
  });
}

}  // namespace stillhouse

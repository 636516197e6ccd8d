// Writing the tokenizer's files from its spec, for teachers that came as GGUF.
#include <utility>

#include "common/status.h"
#include "formats/json.h"
#include "formats/tokenizer_spec.h"

namespace stillhouse {
namespace {

OrderedJson ByteLevelJson(bool use_regex, bool add_prefix_space) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", add_prefix_space},
          {"trim_offsets", true},
          {"use_regex", use_regex}};
}

OrderedJson PatternJson(bool is_regex, const std::string& pattern) {
  return {{is_regex ? "Regex" : "String", pattern}};
}

OrderedJson ReplaceJson(bool is_regex, const std::string& pattern, const std::string& content) {
  return {{"type", "Replace"}, {"pattern", PatternJson(is_regex, pattern)}, {"content", content}};
}

OrderedJson NormalizerStepJson(const NormalizerStep& step) {
  constexpr const char* kForms[] = {"NFC", "NFD", "NFKC", "NFKD"};
  switch (step.kind) {
    case NormalizerStep::Kind::kUnicode:
      return {{"type", kForms[static_cast<size_t>(step.form)]}};
    case NormalizerStep::Kind::kPrepend:
      return {{"type", "Prepend"}, {"prepend", step.content}};
    case NormalizerStep::Kind::kReplacePattern:
    case NormalizerStep::Kind::kReplaceLiteral:
      break;
  }
  return ReplaceJson(step.kind == NormalizerStep::Kind::kReplacePattern, step.pattern,
                     step.content);
}

OrderedJson StepJson(const SplitStep& step) {
  constexpr const char* kBehaviors[] = {"Isolated", "Removed", "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous"};
  constexpr const char* kSchemes[] = {"never", "first", "always"};
  switch (step.kind) {
    case SplitStep::Kind::kDigits:
      return {{"type", "Digits"}, {"individual_digits", step.individual_digits}};
    case SplitStep::Kind::kByteLevel:
      return ByteLevelJson(step.use_regex, step.add_prefix_space);
    case SplitStep::Kind::kMetaspace:
      return {{"type", "Metaspace"},
              {"replacement", step.pattern},
              {"prepend_scheme", kSchemes[static_cast<size_t>(step.prepend)]},
              {"split", step.split}};
    case SplitStep::Kind::kPattern:
    case SplitStep::Kind::kLiteral:
      break;
  }
  return {{"type", "Split"},
          {"pattern", PatternJson(step.kind == SplitStep::Kind::kPattern, step.pattern)},
          {"behavior", kBehaviors[static_cast<size_t>(step.behavior)]},
          {"invert", step.invert}};
}

OrderedJson DecoderStepJson(const DecoderStep& step) {
  switch (step.kind) {
    case DecoderStep::Kind::kByteLevel:
      return ByteLevelJson(/*use_regex=*/true, /*add_prefix_space=*/false);
    case DecoderStep::Kind::kByteFallback:
      return {{"type", "ByteFallback"}};
    case DecoderStep::Kind::kFuse:
      return {{"type", "Fuse"}};
    case DecoderStep::Kind::kStrip:
      return {
          {"type", "Strip"}, {"content", step.content}, {"start", step.start}, {"stop", step.stop}};
    case DecoderStep::Kind::kMetaspace:
      return {{"type", "Metaspace"},
              {"replacement", step.pattern},
              {"prepend_scheme", step.prepends ? "always" : "never"},
              {"split", true}};
    case DecoderStep::Kind::kReplacePattern:
    case DecoderStep::Kind::kReplaceLiteral:
      break;
  }
  return ReplaceJson(step.kind == DecoderStep::Kind::kReplacePattern, step.pattern, step.content);
}

// The steps as one component: null for none, a Sequence for several.
template <typename Step>
OrderedJson StepsJson(const std::vector<Step>& steps, const char* list,
                      OrderedJson (*write)(const Step&)) {
  if (steps.empty()) return nullptr;
  if (steps.size() == 1) return write(steps.front());
  OrderedJson parts = OrderedJson::array();
  for (const Step& step : steps) parts.push_back(write(step));
  return {{"type", "Sequence"}, {list, std::move(parts)}};
}

OrderedJson AddedJson(const AddedToken& token) {
  return {{"content", token.content},         {"lstrip", token.lstrip},
          {"normalized", token.normalized},   {"rstrip", token.rstrip},
          {"single_word", token.single_word}, {"special", token.special}};
}

const std::string& TokenText(const TokenizerSpec& spec, int32_t id) {
  for (const AddedToken& token : spec.added) {
    if (token.id == id) return token.content;
  }
  return spec.tokens[id];
}

// Appends without the search that operator[] of an ordered object makes: it is quadratic.
void Put(OrderedJson& object, const std::string& key, OrderedJson value) {
  object.get_ref<OrderedJson::object_t&>().emplace_back(key, std::move(value));
}

OrderedJson ModelJson(const TokenizerSpec& spec) {
  OrderedJson vocabulary = OrderedJson::object();
  for (size_t id = 0; id < spec.tokens.size(); ++id) {
    if (!spec.tokens[id].empty()) Put(vocabulary, spec.tokens[id], id);
  }
  OrderedJson merges = OrderedJson::array();
  for (const auto& [left, right] : spec.merges) {
    merges.push_back(OrderedJson::array({spec.tokens[left], spec.tokens[right]}));
  }
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", spec.unknown.has_value() ? OrderedJson(spec.tokens[*spec.unknown])
                                                 : OrderedJson(nullptr)},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", spec.fuse_unknown},
          {"byte_fallback", spec.byte_fallback},
          {"ignore_merges", spec.ignore_merges},
          {"vocab", std::move(vocabulary)},
          {"merges", std::move(merges)}};
}

// [BOS] text, where the model expects it.
OrderedJson PostProcessorJson(const TokenizerSpec& spec) {
  if (!spec.adds_bos) return nullptr;
  const std::string& bos = TokenText(spec, *spec.bos_id);
  const OrderedJson first = {{"SpecialToken", {{"id", bos}, {"type_id", 0}}}};
  const OrderedJson text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  const OrderedJson second = {{"Sequence", {{"id", "B"}, {"type_id", 1}}}};
  return {{"type", "TemplateProcessing"},
          {"single", OrderedJson::array({first, text})},
          {"pair", OrderedJson::array({first, text, first, second})},
          {"special_tokens",
           {{bos,
             {{"id", bos},
              {"ids", OrderedJson::array({*spec.bos_id})},
              {"tokens", OrderedJson::array({bos})}}}}}};
}

}  // namespace

std::string TokenizerJson(const TokenizerSpec& spec) {
  OrderedJson added = OrderedJson::array();
  for (const AddedToken& token : spec.added) {
    OrderedJson entry = {{"id", token.id}};
    entry.update(AddedJson(token));
    added.push_back(std::move(entry));
  }
  const OrderedJson root = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", std::move(added)},
      {"normalizer", StepsJson(spec.normalizer, "normalizers", NormalizerStepJson)},
      {"pre_tokenizer", StepsJson(spec.steps, "pretokenizers", StepJson)},
      {"post_processor", PostProcessorJson(spec)},
      {"decoder", StepsJson(spec.decoder, "decoders", DecoderStepJson)},
      {"model", ModelJson(spec)},
  };
  return root.dump(1, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
}

std::string TokenizerConfigJson(const TokenizerSpec& spec) {
  const bool prefix_space = !spec.steps.empty() && spec.steps.back().add_prefix_space;
  Json root = {{"add_prefix_space", prefix_space},
               {"clean_up_tokenization_spaces", false},
               {"tokenizer_class", "PreTrainedTokenizerFast"}};
  Json decoder = Json::object();
  for (const AddedToken& token : spec.added) {
    decoder[std::to_string(token.id)] = AddedJson(token);
  }
  root["added_tokens_decoder"] = std::move(decoder);
  const Json special = Json::parse(SpecialTokensMapJson(spec));
  root.update(special);
  if (spec.adds_bos) root["add_bos_token"] = true;
  if (!spec.chat_template.empty()) root["chat_template"] = spec.chat_template;
  return root.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string SpecialTokensMapJson(const TokenizerSpec& spec) {
  Json root = Json::object();
  if (spec.bos_id.has_value()) root["bos_token"] = TokenText(spec, *spec.bos_id);
  if (spec.eos_id.has_value()) root["eos_token"] = TokenText(spec, *spec.eos_id);
  if (spec.pad_id.has_value()) root["pad_token"] = TokenText(spec, *spec.pad_id);
  if (spec.unk_id.has_value()) root["unk_token"] = TokenText(spec, *spec.unk_id);
  return root.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace stillhouse

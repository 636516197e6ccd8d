// Reading tokenizer.json, the file of the Python `tokenizers` package, as far as byte-level BPE
// goes.
//
// Whatever would make our ids differ from that package's is refused by name; settings that change
// no id (padding, truncation, post-processors, offsets) are passed over.
#include <array>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "common/status.h"
#include "formats/json.h"
#include "formats/tokenizer_spec.h"
#include "formats/utf8.h"

namespace stillhouse {
namespace {

class Parser {
 public:
  Parser(const Json& root, absl::string_view path) : root_(root), path_(path) {}

  absl::StatusOr<TokenizerSpec> Run() {
    const JsonFields fields(root_, path_);
    if (const Json* normalizer = fields.Find("normalizer")) {
      return Lacking("normalizer", TypeOf(*normalizer));
    }
    const Json* model = fields.Find("model");
    if (model == nullptr || !model->is_object()) return Broken("`model` is missing");
    SH_RETURN_IF_ERROR(Model(*model));
    if (const Json* added = fields.Find("added_tokens")) SH_RETURN_IF_ERROR(Added(*added));
    const Json* steps = fields.Find("pre_tokenizer");
    if (steps == nullptr) return Lacking("pre_tokenizer", "null");
    SH_RETURN_IF_ERROR(PreTokenizers(*steps));
    if (spec_.steps.empty() || spec_.steps.back().kind != SplitStep::Kind::kByteLevel) {
      return Lacking("pre_tokenizer without a ByteLevel at its end:", TypeOf(*steps));
    }
    const Json* decoder = fields.Find("decoder");
    if (decoder == nullptr || TypeOf(*decoder) != "ByteLevel") {
      return Lacking("decoder", decoder == nullptr ? "null" : TypeOf(*decoder));
    }
    if (const Json* post = fields.Find("post_processor")) PostProcessor(*post);
    return std::move(spec_);
  }

 private:
  absl::Status Broken(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat(path_, ": ", what));
  }
  absl::Status Lacking(absl::string_view what, absl::string_view name) const {
    return absl::UnimplementedError(absl::StrCat(path_, ": ", what, " \"", name.substr(0, 80),
                                                 "\" is not implemented, only byte-level BPE"));
  }
  static std::string TypeOf(const Json& component) {
    if (!component.is_object()) return "?";
    const auto found = component.find("type");
    return found != component.end() && found->is_string() ? found->get<std::string>() : "?";
  }

  absl::Status Model(const Json& model) {
    const JsonFields fields(model, path_);
    // Old files of this kind have no type.
    SH_ASSIGN_OR_RETURN(const std::optional<std::string> type, fields.String("type"));
    if (type.value_or("BPE") != "BPE") return Lacking("model type", *type);
    for (const absl::string_view key : {"byte_fallback", "fuse_unk"}) {
      SH_ASSIGN_OR_RETURN(const std::optional<bool> on, fields.Bool(key));
      if (on.value_or(false)) return Lacking("model option", key);
    }
    for (const absl::string_view key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      SH_ASSIGN_OR_RETURN(const std::optional<std::string> affix, fields.String(key));
      if (!affix.value_or("").empty()) return Lacking("model option", key);
    }
    SH_ASSIGN_OR_RETURN(const std::optional<double> dropout, fields.Number("dropout"));
    if (dropout.value_or(0) != 0) return Lacking("model option", "dropout");
    SH_ASSIGN_OR_RETURN(const std::optional<bool> ignore, fields.Bool("ignore_merges"));
    spec_.ignore_merges = ignore.value_or(false);
    const Json* vocabulary = fields.Find("vocab");
    const Json* merges = fields.Find("merges");
    if (vocabulary == nullptr || !vocabulary->is_object()) return Broken("`vocab` is missing");
    if (merges == nullptr || !merges->is_array()) return Broken("`merges` is missing");
    SH_RETURN_IF_ERROR(Vocabulary(*vocabulary));
    SH_ASSIGN_OR_RETURN(const std::optional<std::string> unknown, fields.String("unk_token"));
    if (unknown.has_value()) {
      for (int byte = 0; byte < 256; ++byte) {
        const char c = static_cast<char>(byte);
        if (!ids_.contains(ByteLevelFromBytes({&c, 1}))) {
          return Lacking("model option `unk_token` where a byte has no token:", *unknown);
        }
      }
    }
    return Merges(*merges);
  }

  absl::Status Place(const std::string& token, const Json& value) {
    if (!value.is_number_unsigned() || value.get<uint64_t>() >= kTokenizerSizeMax) {
      return Broken(absl::StrCat("token \"", token.substr(0, 80), "\" must have an id from 0 to ",
                                 kTokenizerSizeMax - 1));
    }
    const auto id = value.get<int32_t>();
    if (token.empty()) return Broken(absl::StrCat("token ", id, " is empty"));
    if (static_cast<size_t>(id) >= spec_.tokens.size()) spec_.tokens.resize(id + 1);
    std::string& there = spec_.tokens[id];
    if (!there.empty() && there != token) {
      return Broken(absl::StrCat("id ", id, " stands for two tokens, \"", there.substr(0, 80),
                                 "\" and \"", token.substr(0, 80), "\""));
    }
    there = token;
    ids_[token] = id;
    return absl::OkStatus();
  }

  absl::Status Vocabulary(const Json& vocabulary) {
    // Ids far apart would make a small file fill memory: the table is as long as the largest id.
    const uint64_t size_max = 4 * vocabulary.size() + 65536;
    for (const auto& [token, id] : vocabulary.items()) {
      if (id.is_number_unsigned() && id.get<uint64_t>() >= size_max) {
        return Broken(absl::StrCat("token \"", token.substr(0, 80),
                                   "\" has an id out of all "
                                   "proportion to the vocabulary's size"));
      }
      SH_RETURN_IF_ERROR(Place(token, id));
    }
    return absl::OkStatus();
  }

  absl::Status Merges(const Json& merges) {
    for (const Json& merge : merges) {
      std::string left;
      std::string right;
      if (merge.is_string()) {
        const auto& text = merge.get_ref<const std::string&>();
        const size_t space = text.find(' ');
        if (space == std::string::npos) return BadMerge();
        left = text.substr(0, space);
        right = text.substr(space + 1);
      } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
                 merge[1].is_string()) {
        left = merge[0].get<std::string>();
        right = merge[1].get<std::string>();
      } else {
        return BadMerge();
      }
      const auto left_id = ids_.find(left);
      const auto right_id = ids_.find(right);
      if (left_id == ids_.end() || right_id == ids_.end()) return BadMerge();
      spec_.merges.emplace_back(left_id->second, right_id->second);
    }
    return absl::OkStatus();
  }
  absl::Status BadMerge() const {
    return Broken(absl::StrCat("merge ", spec_.merges.size(), " is not two tokens of `vocab`"));
  }

  absl::Status Added(const Json& added) {
    if (!added.is_array()) return Broken("`added_tokens` must be a list");
    absl::flat_hash_set<std::string> contents;
    for (const Json& entry : added) {
      const JsonFields fields(entry, path_);
      SH_ASSIGN_OR_RETURN(std::string content, fields.RequiredString("content"));
      for (const absl::string_view key : {"single_word", "lstrip", "rstrip"}) {
        SH_ASSIGN_OR_RETURN(const std::optional<bool> on, fields.Bool(key));
        if (on.value_or(false))
          return Lacking(absl::StrCat("added token with `", key, "`:"), content);
      }
      SH_ASSIGN_OR_RETURN(const std::optional<bool> special, fields.Bool("special"));
      const Json* id = fields.Find("id");
      if (id == nullptr) return Broken("an added token has no `id`");
      if (!contents.insert(content).second) {
        return Broken(absl::StrCat("added token \"", content.substr(0, 80), "\" stands twice"));
      }
      const auto there = ids_.find(content);
      if (there != ids_.end() && *id != there->second) {
        return Broken(absl::StrCat("added token \"", content.substr(0, 80), "\" has two ids"));
      }
      if (id->is_number_unsigned() && id->get<uint64_t>() > 4 * spec_.tokens.size() + 65536) {
        return Broken(
            absl::StrCat("added token \"", content.substr(0, 80), "\" has id ", id->dump()));
      }
      SH_RETURN_IF_ERROR(Place(content, *id));
      spec_.added.push_back({id->get<int32_t>(), std::move(content), special.value_or(false)});
    }
    return absl::OkStatus();
  }

  absl::Status PreTokenizers(const Json& component) {
    const std::string type = TypeOf(component);
    if (!spec_.steps.empty() && spec_.steps.back().kind == SplitStep::Kind::kByteLevel) {
      return Lacking("pre_tokenizer after a ByteLevel:", type);
    }
    const JsonFields fields(component, path_);
    if (type == "Sequence") {
      const Json* list = fields.Find("pretokenizers");
      if (list == nullptr || !list->is_array()) return Broken("a Sequence has no `pretokenizers`");
      for (const Json& inner : *list) SH_RETURN_IF_ERROR(PreTokenizers(inner));
      return absl::OkStatus();
    }
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
    } else if (type == "Split") {
      SH_RETURN_IF_ERROR(Split(fields, step));
    } else {
      return Lacking("pre_tokenizer", type);
    }
    spec_.steps.push_back(std::move(step));
    return absl::OkStatus();
  }

  absl::Status Split(const JsonFields& fields, SplitStep& step) {
    const Json* pattern = fields.Find("pattern");
    if (pattern == nullptr || !pattern->is_object() || pattern->size() != 1) {
      return Broken("a Split has no `pattern`");
    }
    const JsonFields inner(*pattern, path_);
    SH_ASSIGN_OR_RETURN(const std::optional<std::string> regex, inner.String("Regex"));
    SH_ASSIGN_OR_RETURN(const std::optional<std::string> literal, inner.String("String"));
    if (!regex.has_value() && !literal.has_value()) return Broken("a Split has no `pattern`");
    step.kind = regex.has_value() ? SplitStep::Kind::kPattern : SplitStep::Kind::kLiteral;
    step.pattern = regex.has_value() ? *regex : *literal;
    SH_ASSIGN_OR_RETURN(const std::string behavior, fields.RequiredString("behavior"));
    SH_ASSIGN_OR_RETURN(const std::optional<bool> inverted, fields.Bool("invert"));
    if (behavior == "Removed") {
      (inverted.value_or(false) ? step.keep_between : step.keep_matches) = false;
    } else if (behavior != "Isolated") {
      return Lacking("Split behavior", behavior);
    }
    return absl::OkStatus();
  }

  // Encode adds no special token; whether the model expects one first is all that is of use here.
  void PostProcessor(const Json& component) {
    const std::string type = TypeOf(component);
    const JsonFields fields(component, path_);
    if (type == "Sequence") {
      const Json* list = fields.Find("processors");
      for (const Json& inner : list == nullptr ? Json::array() : *list) PostProcessor(inner);
      return;
    }
    const Json* single = type == "TemplateProcessing" ? fields.Find("single") : nullptr;
    if (single == nullptr || !single->is_array() || single->empty()) return;
    const Json& first = single->front();
    if (!first.is_object() || !first.contains("SpecialToken")) return;
    const Json& token = first["SpecialToken"];
    if (!token.is_object() || !token.contains("id") || !token["id"].is_string()) return;
    const auto found = ids_.find(token["id"].get<std::string>());
    if (found == ids_.end()) return;
    spec_.bos_id = found->second;
    spec_.adds_bos = true;
  }

  const Json& root_;
  absl::string_view path_;
  TokenizerSpec spec_;
  absl::flat_hash_map<std::string, int32_t> ids_;
};

}  // namespace

absl::StatusOr<TokenizerSpec> ParseTokenizerJson(absl::string_view json, absl::string_view path) {
  SH_ASSIGN_OR_RETURN(const Json root, ParseJson(json, path));
  return Parser(root, path).Run();
}

absl::Status ReadTokenizerConfig(absl::string_view json, absl::string_view path,
                                 TokenizerSpec& spec) {
  SH_ASSIGN_OR_RETURN(const Json root, ParseJson(json, path));
  const JsonFields fields(root, path);
  const std::array<std::pair<absl::string_view, std::optional<int32_t>*>, 4> tokens = {{
      {"bos_token", &spec.bos_id},
      {"eos_token", &spec.eos_id},
      {"pad_token", &spec.pad_id},
      {"unk_token", &spec.unk_id},
  }};
  for (const auto& [key, id] : tokens) {
    const Json* value = fields.Find(key);
    // A token is its text, or an object that holds it.
    if (value != nullptr && value->is_object()) value = JsonFields(*value, path).Find("content");
    if (value == nullptr) continue;
    if (!value->is_string()) return fields.WrongType(key, "a token");
    const std::string text = value->get<std::string>();
    for (const AddedToken& added : spec.added) {
      if (added.content == text) *id = added.id;
    }
    for (size_t i = 0; !id->has_value() && i < spec.tokens.size(); ++i) {
      if (spec.tokens[i] == text) *id = static_cast<int32_t>(i);
    }
  }
  SH_ASSIGN_OR_RETURN(const std::optional<bool> adds, fields.Bool("add_bos_token"));
  if (adds.has_value() && spec.bos_id.has_value()) spec.adds_bos = *adds;
  // Newer files keep it in chat_template.jinja; a list of named templates has no single one.
  const Json* chat = fields.Find("chat_template");
  if (chat != nullptr && chat->is_string()) spec.chat_template = chat->get<std::string>();
  return absl::OkStatus();
}

}  // namespace stillhouse

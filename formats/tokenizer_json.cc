// Reading tokenizer.json, the file of the Python `tokenizers` package, as far as BPE goes.
//
// Whatever would make our ids differ from that package's is refused by name; padding and
// truncation, which whoever asks for ids decides, are passed over.
#include <array>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "common/status.h"
#include "formats/json.h"
#include "formats/tokenizer_json_steps.h"
#include "formats/tokenizer_spec.h"
#include "formats/utf8.h"

namespace stillhouse {
namespace {

class Parser {
 public:
  Parser(const Json& root, absl::string_view path) : root_(root), path_(path) {}

  absl::StatusOr<TokenizerSpec> Run() {
    const JsonFields fields(root_, path_);
    const Json* model = fields.Find("model");
    if (model == nullptr || !model->is_object()) return Broken("`model` is missing");
    SH_RETURN_IF_ERROR(Model(*model));
    if (const Json* added = fields.Find("added_tokens")) SH_RETURN_IF_ERROR(Added(*added));
    if (const Json* normalizer = fields.Find("normalizer")) {
      SH_RETURN_IF_ERROR(ParseNormalizer(*normalizer, path_, spec_));
    }
    if (const Json* steps = fields.Find("pre_tokenizer")) {
      SH_RETURN_IF_ERROR(ParsePreTokenizer(*steps, path_, spec_));
    }
    const Json* decoder = fields.Find("decoder");
    if (decoder == nullptr) return Lacking("decoder", "null");
    SH_RETURN_IF_ERROR(ParseDecoder(*decoder, path_, spec_));
    if (const Json* post = fields.Find("post_processor")) {
      SH_RETURN_IF_ERROR(ParsePostProcessor(*post, path_, spec_));
    }
    if (!spec_.prefix.empty()) {
      spec_.bos_id = spec_.prefix.front();
      spec_.adds_bos = true;
    }
    for (const auto* affix : {&spec_.prefix, &spec_.suffix}) {
      for (const int32_t id : *affix) {
        if (static_cast<size_t>(id) >= spec_.tokens.size()) {
          return Broken(absl::StrCat("the post-processor adds token ", id, ", which is not there"));
        }
      }
    }
    DropUnknown();
    return std::move(spec_);
  }

 private:
  absl::Status Broken(absl::string_view what) const { return BrokenTokenizer(path_, what); }
  absl::Status Lacking(absl::string_view what, absl::string_view name) const {
    return LackingComponent(path_, what, name);
  }

  // Where every byte has a token, byte-level text has nothing unknown.
  void DropUnknown() {
    bool all = !spec_.steps.empty() && spec_.steps.back().kind == SplitStep::Kind::kByteLevel;
    for (int byte = 0; byte < 256; ++byte) {
      all = all && ids_.contains(ByteLevelCharacter(static_cast<uint8_t>(byte)));
    }
    if (!all) return;
    spec_.unknown.reset();
    spec_.byte_fallback = spec_.fuse_unknown = false;
  }

  absl::Status Model(const Json& model) {
    const JsonFields fields(model, path_);
    // Old files of this kind have no type.
    SH_ASSIGN_OR_RETURN(const std::optional<std::string> type, fields.String("type"));
    if (type.value_or("BPE") != "BPE") {
      return Lacking("model type", absl::StrCat(*type, "\", only \"BPE"));
    }
    SH_ASSIGN_OR_RETURN(const std::optional<bool> fallback, fields.Bool("byte_fallback"));
    spec_.byte_fallback = fallback.value_or(false);
    SH_ASSIGN_OR_RETURN(const std::optional<bool> fuse, fields.Bool("fuse_unk"));
    spec_.fuse_unknown = fuse.value_or(false);
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
      const auto found = ids_.find(*unknown);
      if (found == ids_.end()) {
        return Broken(
            absl::StrCat("`unk_token` \"", unknown->substr(0, 80), "\" is not in `vocab`"));
      }
      spec_.unknown = found->second;
    }
    vocabulary_size_ = ids_.size();
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
        if (absl::StartsWith(text, "#version")) continue;
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
      AddedToken token;
      const std::pair<absl::string_view, bool*> flags[] = {{"special", &token.special},
                                                           {"single_word", &token.single_word},
                                                           {"lstrip", &token.lstrip},
                                                           {"rstrip", &token.rstrip},
                                                           {"normalized", &token.normalized}};
      for (const auto& [key, flag] : flags) {
        SH_ASSIGN_OR_RETURN(const std::optional<bool> on, fields.Bool(key));
        *flag = on.value_or(false);
      }
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
      token.in_vocabulary = there != ids_.end();
      SH_RETURN_IF_ERROR(Place(content, *id));
      token.id = id->get<int32_t>();
      SH_RETURN_IF_ERROR(CheckNewId(token, content));
      token.content = std::move(content);
      spec_.added.push_back(std::move(token));
    }
    return absl::OkStatus();
  }

  // `tokenizers` gives new tokens the ids after the vocabulary, in their order, whatever the file
  // says.
  absl::Status CheckNewId(const AddedToken& token, absl::string_view content) {
    const auto wanted = static_cast<int32_t>(vocabulary_size_ + new_tokens_);
    if (token.in_vocabulary) return absl::OkStatus();
    ++new_tokens_;
    if (token.id == wanted) return absl::OkStatus();
    return Broken(absl::StrCat("added token \"", content.substr(0, 80), "\" has id ", token.id,
                               ", but new ones count on from the vocabulary: ", wanted));
  }

  const Json& root_;
  absl::string_view path_;
  TokenizerSpec spec_;
  absl::flat_hash_map<std::string, int32_t> ids_;
  size_t vocabulary_size_ = 0;
  size_t new_tokens_ = 0;
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

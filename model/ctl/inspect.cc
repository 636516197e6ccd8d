#include <algorithm>
#include <cstdio>
#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/json.h"
#include "formats/model_files.h"
#include "model/ctl/commands.h"

namespace stillhouse {
namespace {

OrderedJson Describe(const ModelFiles& files, const Digest& fingerprint, bool tensors) {
  const ModelConfig& config = files.config;
  OrderedJson out;
  out["path"] = files.path;
  out["format"] = files.format;
  out["architecture"] = config.architecture;
  out["parameters"] = config.ParameterCount();
  out["layers"] = config.layers;
  out["hidden_size"] = config.hidden_size;
  out["intermediate_size"] = config.intermediate_size;
  out["heads"] = config.heads;
  out["kv_heads"] = config.kv_heads;
  out["head_dim"] = config.head_dim;
  out["vocab_size"] = config.vocab_size;
  out["max_positions"] = config.max_positions;
  out["rope_theta"] = config.rope_theta;
  if (config.rope != RopeScaling()) {
    out["rope_scaling"] = RopeKindName(config.rope.kind);
    out["rope_factor"] = config.rope.factor;
    out["tokens_max"] = config.TokensMax();
  }
  if (config.sliding_window > 0) {
    out["sliding_window"] = config.sliding_window;
    if (!config.sliding_layers.empty()) {
      out["sliding_layers"] =
          std::count(config.sliding_layers.begin(), config.sliding_layers.end(), true);
    }
  }
  out["rms_norm_eps"] = config.rms_norm_eps;
  out["tie_embeddings"] = config.tie_embeddings;
  std::map<std::string, int> stored;
  for (const TensorInfo& tensor : files.weights->tensors()) ++stored[tensor.stored_dtype];
  out["stored_dtypes"] = stored;
  uint64_t bytes = 0;
  const std::vector<FileIdentity> stored_in = files.weights->files();
  for (const FileIdentity& file : stored_in) bytes += file.size;
  out["files"] = stored_in.size();
  out["file_bytes"] = bytes;
  out["fingerprint"] = fingerprint.Hex();
  if (files.tokenizer != nullptr) {
    out["tokenizer_size"] = files.tokenizer->size();
    out["tokenizer_fingerprint"] = files.tokenizer->Fingerprint().Hex();
  }
  if (tensors) {
    OrderedJson list = OrderedJson::array();
    for (const TensorInfo& tensor : files.weights->tensors()) {
      list.push_back(
          {{"name", tensor.name}, {"dtype", tensor.stored_dtype}, {"shape", tensor.shape}});
    }
    out["tensors"] = std::move(list);
  }
  return out;
}

std::string ValueText(const OrderedJson& value) {
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_object()) return value.dump();
  std::vector<std::string> parts;
  for (const auto& [key, inner] : value.items()) {
    parts.push_back(absl::StrCat(key, " ", inner.dump()));
  }
  return absl::StrJoin(parts, ", ");
}

std::string Table(const OrderedJson& description) {
  std::string out;
  for (const auto& [key, value] : description.items()) {
    if (key != "tensors") {
      absl::StrAppendFormat(&out, "%-22s %s\n", key, ValueText(value));
      continue;
    }
    absl::StrAppend(&out, "\n");
    for (const OrderedJson& tensor : value) {
      absl::StrAppendFormat(&out, "%-6s %-16s %s\n", tensor["dtype"].get<std::string>(),
                            tensor["shape"].dump(), tensor["name"].get<std::string>());
    }
  }
  return out;
}

}  // namespace

absl::Status Inspect(const InspectFlags& flags) {
  SH_ASSIGN_OR_RETURN(const ModelFiles files, OpenModelFiles(flags.model));
  SH_ASSIGN_OR_RETURN(const Digest fingerprint, TeacherFingerprint(files, UserCacheFolder()));
  const OrderedJson description = Describe(files, fingerprint, flags.tensors);
  // Names come from a file that other people made: bytes that are no UTF-8 are replaced.
  const std::string text =
      flags.output == "json"
          ? description.dump(2, ' ', false, OrderedJson::error_handler_t::replace) + "\n"
          : Table(description);
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    return ErrnoStatus("writing", "standard output");
  }
  return absl::OkStatus();
}

}  // namespace stillhouse

// Writing a model as a GGUF file, as llama.cpp's converter does.
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "absl/strings/match.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/gguf_model.h"
#include "formats/gguf_tokenizer.h"
#include "formats/gguf_writer.h"
#include "formats/load_tensors.h"
#include "formats/model_diff.h"
#include "formats/rope_json.h"

namespace stillhouse {
namespace {

using Kind = RopeScaling::Kind;

absl::Status Lacks(absl::string_view what) {
  return absl::UnimplementedError(
      absl::StrCat("GGUF cannot hold this model: ", what, " has no place in it"));
}

// llama.cpp writes Mistral as "llama" too.
std::string GgufArchitecture(const ModelConfig& config) {
  return config.architecture == "mistral" ? "llama" : config.architecture;
}

absl::Status AddRope(const ModelConfig& config, const std::string& prefix, GgufMetadata& metadata) {
  metadata.AddU32(prefix + "rope.dimension_count", config.head_dim);
  metadata.AddF32(prefix + "rope.freq_base", config.rope_theta);
  const RopeScaling& rope = config.rope;
  if (rope.kind == Kind::kDefault) return absl::OkStatus();
  if (rope.kind == Kind::kDynamic) return Lacks("dynamic RoPE");
  if (rope.kind == Kind::kLlama3) {  // a tensor of divisors
    if (prefix == "llama.") return absl::OkStatus();
    return Lacks("Llama 3's RoPE in another architecture");
  }
  metadata.AddString(prefix + "rope.scaling.type", RopeKindName(rope.kind));
  metadata.AddF32(prefix + "rope.scaling.factor", rope.factor);
  if (rope.kind == Kind::kLinear) return absl::OkStatus();
  if (!rope.truncate) return Lacks("YaRN with `truncate` false");
  if (std::abs(rope.attention_factor - YarnMagnitude(rope.factor, 1)) > 1e-6) {
    return Lacks("YaRN with an attention_factor of its own");
  }
  metadata.AddU32(prefix + "rope.scaling.original_context_length", rope.original_positions);
  metadata.AddF32(prefix + "rope.scaling.yarn_beta_fast", rope.beta_fast);
  metadata.AddF32(prefix + "rope.scaling.yarn_beta_slow", rope.beta_slow);
  return absl::OkStatus();
}

// The ends of a text: the tokenizer's own first, then those that config.json and
// generation_config.json name besides, as ends of a turn and of a message.
absl::Status AddTokenIds(const ModelConfig& config, const TokenizerSpec& spec,
                         GgufMetadata& metadata) {
  const auto add = [&](absl::string_view name, std::optional<int64_t> id) {
    if (id.has_value()) metadata.AddU32(absl::StrCat("tokenizer.ggml.", name, "_token_id"), *id);
  };
  const auto either = [](std::optional<int32_t> ours, std::optional<int64_t> other) {
    return ours.has_value() ? std::optional<int64_t>(*ours) : other;
  };
  add("bos", either(spec.bos_id, config.bos_id));
  add("padding", either(spec.pad_id, config.pad_id));
  const std::optional<int64_t> eos = either(spec.eos_id, config.eos_id);
  add("eos", eos);
  std::vector<int64_t> others;
  if (config.eos_id.has_value() && config.eos_id != eos) others.push_back(*config.eos_id);
  for (const int64_t id : config.more_eos_ids) {
    if (id != eos) others.push_back(id);
  }
  if (others.size() > 2) return Lacks("a fourth token that ends a text");
  if (!others.empty()) add("eot", others[0]);
  if (others.size() > 1) add("eom", others[1]);
  return absl::OkStatus();
}

absl::StatusOr<GgufMetadata> MetadataOf(const ModelConfig& config, const TokenizerSpec& spec,
                                        const std::string& name, const std::string& type) {
  // By llama.cpp's numbers of file types; of a file of several types, none.
  static constexpr std::pair<absl::string_view, int64_t> kFileTypes[] = {
      {"F32", 0}, {"F16", 1}, {"Q8_0", 7}, {"BF16", 32}};
  if (config.sliding_window > 0) return Lacks("a sliding window");
  GgufMetadata metadata;
  const std::string prefix = GgufArchitecture(config) + ".";
  metadata.AddString("general.architecture", GgufArchitecture(config));
  metadata.AddString("general.type", "model");
  metadata.AddString("general.name", name);
  for (const auto& [stored, number] : kFileTypes) {
    if (stored == type) metadata.AddU32("general.file_type", number);
  }
  metadata.AddU32("general.quantization_version", 2);
  const std::pair<absl::string_view, int64_t> sizes[] = {
      {"block_count", config.layers},
      {"context_length", config.max_positions},
      {"embedding_length", config.hidden_size},
      {"feed_forward_length", config.intermediate_size},
      {"vocab_size", config.vocab_size},
      {"attention.head_count", config.heads},
      {"attention.head_count_kv", config.kv_heads},
      {"attention.key_length", config.head_dim},
      {"attention.value_length", config.head_dim},
  };
  for (const auto& [key, value] : sizes) metadata.AddU32(absl::StrCat(prefix, key), value);
  metadata.AddF32(prefix + "attention.layer_norm_rms_epsilon", config.rms_norm_eps);
  SH_RETURN_IF_ERROR(AddRope(config, prefix, metadata));
  SH_RETURN_IF_ERROR(AddGgufTokenizer(spec, config.vocab_size, metadata));
  SH_RETURN_IF_ERROR(AddTokenIds(config, spec, metadata));
  return metadata;
}

// Norms and biases are F32, as llama.cpp wants them; matrices `type`, "" for what they are.
absl::StatusOr<const GgmlType*> TypeOf(const TensorInfo& info, const std::string& type) {
  const std::string& wanted = info.shape.size() == 1 ? "F32"
                              : type.empty()         ? info.stored_dtype
                                                     : type;
  const GgmlType* found = FindGgmlType(wanted);
  if (found == nullptr) {
    return absl::UnimplementedError(
        absl::StrCat("tensor \"", info.name, "\": GGUF has no type ", wanted));
  }
  if (info.shape.back() % found->block == 0) return found;
  return absl::InvalidArgumentError(
      absl::StrCat("tensor \"", info.name, "\" has rows of ", info.shape.back(), " values; ",
                   wanted, " stores blocks of ", found->block, ": take another dtype"));
}

// Whole heads of q and k, from Hugging Face's order of rows to llama.cpp's.
void Rotate(size_t head_dim, size_t row_bytes, const std::string& from, std::string& to) {
  to.resize(from.size());
  for (size_t row = 0; row < from.size() / row_bytes; ++row) {
    const size_t within = row % head_dim;
    const size_t target = row - within + 2 * (within % (head_dim / 2)) + within / (head_dim / 2);
    std::copy_n(from.data() + row * row_bytes, row_bytes, to.data() + target * row_bytes);
  }
}

absl::Status WriteTensor(const Weights& weights, const TensorInfo& info, const GgmlType& type,
                         int64_t rotated_head_dim, GgufWriter& writer) {
  const int64_t columns = info.Count() / info.Rows();
  // Whole heads, where rows change places within them.
  const int64_t unit = std::max<int64_t>(rotated_head_dim, 1);
  const int64_t step = std::max<int64_t>(1, kLoadBlockValues / (columns * unit)) * unit;
  const size_t row_bytes = static_cast<size_t>(columns) / type.block * type.bytes;
  std::vector<float> values;
  std::string rows, rotated;
  for (int64_t first = 0; first < info.Rows(); first += step) {
    const int64_t count = std::min(step, info.Rows() - first);
    rows.resize(static_cast<size_t>(count) * row_bytes);
    if (info.stored_dtype == type.name) {
      SH_RETURN_IF_ERROR(weights.CopyRows(info.name, first, absl::MakeSpan(rows)));
    } else {
      values.resize(static_cast<size_t>(count * columns));
      SH_RETURN_IF_ERROR(weights.ReadRowsF32(info.name, first, absl::MakeSpan(values)));
      SH_RETURN_IF_ERROR_AT(GgmlEncode(type, values, absl::MakeSpan(rows)), info.name);
      if (FloatBytes(type.name) == 2)
        SH_RETURN_IF_ERROR_AT(CheckFinite(rows, type.name), info.name);
    }
    GiveBackRows(weights, info, {0, first, count});
    if (rotated_head_dim > 0)
      Rotate(static_cast<size_t>(rotated_head_dim), row_bytes, rows, rotated);
    SH_RETURN_IF_ERROR(writer.Append(rotated_head_dim > 0 ? rotated : rows));
  }
  return absl::OkStatus();
}

// The file's header, read back, means the same model: else nobody could tell what was lost.
absl::Status CheckHeader(const std::string& path, const ModelFiles& model) {
  SH_ASSIGN_OR_RETURN(const std::shared_ptr<const GgufFile> file, GgufFile::Open(path));
  SH_ASSIGN_OR_RETURN(ModelConfig read, GgufModelConfig(*file));
  ModelConfig wanted = model.config;
  wanted.architecture = GgufArchitecture(wanted);
  wanted.rope.attention_factor = read.rope.attention_factor;  // compared when it was written
  const auto ends = [](ModelConfig& config) {  // a set; the other ids are the tokenizer's
    std::vector<int64_t> all = std::exchange(config.more_eos_ids, {});
    if (config.eos_id.has_value()) all.push_back(*config.eos_id);
    std::sort(all.begin(), all.end());
    config.bos_id = config.eos_id = config.pad_id = std::nullopt;
    return all;
  };
  std::vector<int64_t> ends_wanted = ends(wanted);
  const std::vector<int64_t> ends_read = ends(read);
  const auto eos = model.tokenizer->eos_id();
  if (eos.has_value() && !std::binary_search(ends_wanted.begin(), ends_wanted.end(), *eos)) {
    ends_wanted.insert(std::upper_bound(ends_wanted.begin(), ends_wanted.end(), *eos), *eos);
  }
  const std::vector<FieldDifference> fields = DiffConfigs(wanted, read);
  if (!fields.empty()) {
    return Lacks(absl::StrCat(fields.front().field, " ", fields.front().a,
                              ", which would be read as ", fields.front().b, ","));
  }
  if (ends_wanted != ends_read) return Lacks("one of its ends of a text");
  SH_ASSIGN_OR_RETURN(const TokenizerSpec spec, GgufTokenizerSpec(*file));
  if (SameForGguf(*model.tokenizer->spec(), spec)) return absl::OkStatus();
  return Lacks("a part of its tokenizer, which would be read as another,");
}

absl::Status WriteFile(const std::string& path, const std::string& name, const ModelFiles& model,
                       const std::string& type) {
  const ModelConfig& config = model.config;
  SH_ASSIGN_OR_RETURN(const GgufMetadata metadata,
                      MetadataOf(config, *model.tokenizer->spec(), name, type));
  std::vector<GgufTensorInfo> tensors;
  const bool has_divisors = config.rope.kind == Kind::kLlama3;
  if (has_divisors) {
    tensors.push_back({kRopeDivisors, FindGgmlType("F32"), {config.head_dim / 2}});
  }
  for (const TensorInfo& info : model.weights->tensors()) {
    SH_ASSIGN_OR_RETURN(const GgmlType* stored, TypeOf(info, type));
    tensors.push_back({GgufTensorName(info.name), stored, info.shape});
  }
  SH_ASSIGN_OR_RETURN(const std::unique_ptr<GgufWriter> writer,
                      GgufWriter::Create(path, metadata, tensors));
  size_t next = 0;
  if (has_divisors) {
    const std::vector<float> divisors = RopeDivisors(config.rope, config);
    SH_RETURN_IF_ERROR(writer->Append(
        {reinterpret_cast<const char*>(divisors.data()), divisors.size() * sizeof(float)}));
    ++next;
  }
  SH_RETURN_IF_ERROR(CheckHeader(path, model));
  SH_RETURN_IF_ERROR(writer->DropReserved());
  for (const TensorInfo& info : model.weights->tensors()) {
    const GgufTensorInfo& target = tensors[next++];
    const bool rotated =
        GgufArchitecture(config) == "llama" &&
        (absl::StrContains(target.name, ".attn_q.") || absl::StrContains(target.name, ".attn_k."));
    SH_RETURN_IF_ERROR(
        WriteTensor(*model.weights, info, *target.type, rotated ? config.head_dim : 0, *writer));
  }
  return writer->Close();
}

}  // namespace

absl::Status WriteGguf(const std::string& path, const ModelFiles& model, const std::string& dtype) {
  if (PathExists(path)) return absl::AlreadyExistsError(absl::StrCat(path, " is there already"));
  if (model.tokenizer == nullptr || model.tokenizer->spec() == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(model.path, ": has no tokenizer to write"));
  }
  SH_RETURN_IF_ERROR(MakeFolders(FolderOf(path)));
  const std::string partial = absl::StrCat(path, ".", ::getpid(), ".tmp");
  absl::Status status = WriteFile(partial, BaseName(model.path), model, dtype);
  if (status.ok() &&
      ::renameat2(AT_FDCWD, partial.c_str(), AT_FDCWD, path.c_str(), RENAME_NOREPLACE) != 0) {
    status = ErrnoStatus("renaming the finished file to", path);
  }
  if (!status.ok()) {
    ::unlink(partial.c_str());
    return Annotate(status, absl::StrCat("writing ", path));
  }
  return FsyncFolder(FolderOf(path));
}

}  // namespace stillhouse

// TeacherFingerprint: a SHA-256 tree over what decides a model's numbers.
//
// Leaves are blocks of kBlockBytes of each tensor's stored bytes, hashed by several threads; above
// them stand one hash per tensor (name, dtype, shape, blocks), one over all tensors, and the root
// over the canonical architecture and that. The hash over all tensors is what the memo remembers.
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <utility>

#include "common/file.h"
#include "common/status.h"
#include "formats/model_files.h"
#include "formats/parallel_blocks.h"

namespace stillhouse {
namespace {

constexpr uint64_t kBlockBytes = 4 << 20;
constexpr uint64_t kMemoBytesMax = 4096;
constexpr absl::string_view kMemoHeader = "stillhouse fingerprint memo 1\n";

struct Block {
  absl::string_view bytes;
  Digest digest;
};

absl::StatusOr<Digest> HashTensors(const Weights& weights) {
  std::vector<Block> blocks;
  for (const TensorInfo& tensor : weights.tensors()) {
    SH_ASSIGN_OR_RETURN(const absl::string_view bytes, weights.RawBytes(tensor.name));
    for (uint64_t at = 0; at < bytes.size(); at += kBlockBytes) {
      blocks.push_back({bytes.substr(at, kBlockBytes), {}});
    }
  }
  SH_RETURN_IF_ERROR(ForEachBlock(blocks.size(), [&](size_t i) {
    blocks[i].digest = Sha256Of(blocks[i].bytes);
    weights.GiveBack(blocks[i].bytes);
    return absl::OkStatus();
  }));
  Sha256 all;
  all.AddField("stillhouse tensors 1").AddU64(weights.tensors().size());
  size_t next = 0;
  for (const TensorInfo& tensor : weights.tensors()) {
    SH_ASSIGN_OR_RETURN(const absl::string_view bytes, weights.RawBytes(tensor.name));
    Sha256 one;
    one.AddField(tensor.name).AddField(tensor.stored_dtype).AddU64(tensor.shape.size());
    for (const int64_t dimension : tensor.shape) one.AddU64(static_cast<uint64_t>(dimension));
    one.AddU64(bytes.size());
    for (uint64_t at = 0; at < bytes.size(); at += kBlockBytes)
      one.AddDigest(blocks[next++].digest);
    all.AddDigest(one.Finish());
  }
  return all.Finish();
}

// RoPE scaling and sliding windows, each only where there is one: models without have the
// fingerprints that they had before either was read. Biases and norms show in the tensors' names.
void AddVariants(const ModelConfig& config, Sha256& hash) {
  const RopeScaling& rope = config.rope;
  if (rope.kind != RopeScaling::Kind::kDefault) {
    hash.AddField("rope scaling").AddField(RopeKindName(rope.kind));
    hash.AddU64(static_cast<uint64_t>(rope.original_positions)).AddU64(rope.truncate ? 1 : 0);
    for (const double number : {rope.factor, rope.attention_factor, rope.beta_fast, rope.beta_slow,
                                rope.low_freq_factor, rope.high_freq_factor}) {
      hash.AddRaw(&number, sizeof(number));
    }
  }
  if (config.sliding_window == 0) return;
  hash.AddField("sliding window").AddU64(static_cast<uint64_t>(config.layers));
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    hash.AddU64(static_cast<uint64_t>(config.WindowOf(layer)));
  }
}

// What config.json says about the function computed, whatever its dialect. Token ids and the dtype
// that a loader would choose are no part of it; the tensors' own dtypes are.
void AddArchitecture(const ModelConfig& config, Sha256& hash) {
  hash.AddField("stillhouse architecture 1").AddField(config.architecture);
  for (const int64_t number :
       {config.vocab_size, config.hidden_size, config.intermediate_size, config.layers,
        config.heads, config.kv_heads, config.head_dim, config.max_positions}) {
    hash.AddU64(static_cast<uint64_t>(number));
  }
  hash.AddRaw(&config.rope_theta, sizeof(double)).AddRaw(&config.rms_norm_eps, sizeof(double));
  hash.AddU64(config.tie_embeddings ? 1 : 0);
  AddVariants(config, hash);
}

// The memo of these files: its name, and what must stand in it for it to count.
struct Memo {
  std::string path;
  std::string key;
};

Memo MemoFor(const std::vector<FileIdentity>& files, const std::string& folder) {
  Memo memo;
  for (const FileIdentity& file : files) {
    absl::StrAppend(&memo.key, file.size, " ", file.device, " ", file.inode, " ", file.modified_ns,
                    " ", file.changed_ns, " ", file.path, "\n");
  }
  const Digest name = Sha256Of(memo.key);
  memo.key = absl::StrCat(kMemoHeader, name.Hex(), "\n");
  memo.path = JoinPath(folder, absl::StrCat("teacher-", name.Hex()));
  return memo;
}

// Anything but a well-formed memo of our own is as good as none.
std::optional<Digest> ReadMemo(const Memo& memo) {
  struct stat info {};
  if (::lstat(memo.path.c_str(), &info) != 0 || !S_ISREG(info.st_mode) ||
      info.st_uid != ::geteuid() || (info.st_mode & 022) != 0) {
    return std::nullopt;
  }
  const absl::StatusOr<std::string> text = ReadFile(memo.path, kMemoBytesMax);
  if (!text.ok() || text->compare(0, memo.key.size(), memo.key) != 0) return std::nullopt;
  const absl::StatusOr<Digest> digest = DigestFromHex(text->substr(memo.key.size()));
  return digest.ok() ? std::optional<Digest>(*digest) : std::nullopt;
}

}  // namespace

absl::StatusOr<Digest> TeacherFingerprint(const ModelFiles& model, const std::string& memo_folder) {
  const std::vector<FileIdentity> files = model.weights->files();
  std::optional<Digest> tensors;
  Memo memo;
  const bool remembers = !memo_folder.empty() && !files.empty();
  if (remembers) {
    memo = MemoFor(files, memo_folder);
    tensors = ReadMemo(memo);
  }
  if (!tensors.has_value()) {
    SH_ASSIGN_OR_RETURN_AT(tensors, HashTensors(*model.weights), model.path);
    // A folder that cannot be written costs time at the next start, nothing else.
    if (remembers && MakeFolders(memo_folder, 0700).ok()) {
      WriteFileAtomically(memo.path, memo.key + tensors->Hex(), 0600).IgnoreError();
    }
  }
  Sha256 root;
  AddArchitecture(model.config, root);
  return root.AddDigest(*tensors).Finish();
}

std::string UserCacheFolder() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && cache[0] == '/') return JoinPath(cache, "stillhouse");
  const char* home = std::getenv("HOME");
  if (home == nullptr || home[0] != '/') return "";
  return JoinPath(home, ".cache/stillhouse");
}

}  // namespace stillhouse

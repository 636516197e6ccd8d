#include "formats/load_tensors.h"

#include <algorithm>

#include "common/mutex.h"
#include "common/status.h"
#include "formats/parallel_blocks.h"

namespace stillhouse {

std::vector<RowBlock> RowBlocksOf(const std::vector<const TensorInfo*>& tensors) {
  std::vector<RowBlock> blocks;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t rows = tensors[i]->Rows();
    const int64_t step = std::max<int64_t>(1, kLoadBlockValues / (tensors[i]->Count() / rows));
    for (int64_t first = 0; first < rows; first += step) {
      blocks.push_back({i, first, std::min(step, rows - first)});
    }
  }
  return blocks;
}

void GiveBackRows(const Weights& weights, const TensorInfo& tensor, const RowBlock& block) {
  const auto bytes = weights.RawBytes(tensor.name);
  if (!bytes.ok()) return;  // weights without files
  const size_t row = bytes->size() / static_cast<size_t>(tensor.Rows());
  weights.GiveBack(
      bytes->substr(static_cast<size_t>(block.first) * row, static_cast<size_t>(block.rows) * row));
}

absl::Status ReadRowsAs(const Weights& weights, absl::string_view name, int64_t first,
                        absl::string_view dtype, std::vector<float>& scratch,
                        absl::Span<char> out) {
  const TensorInfo* info = weights.Find(name);
  if (info == nullptr) return absl::NotFoundError(absl::StrCat("no tensor \"", name, "\""));
  if (info->stored_dtype == dtype) return weights.CopyRows(name, first, out);
  SH_CHECK(FloatBytes(dtype) != 0, dtype);
  const size_t count = out.size() / FloatBytes(dtype);
  if (dtype == "F32") {
    return weights.ReadRowsF32(name, first, {reinterpret_cast<float*>(out.data()), count});
  }
  if (scratch.size() < count) scratch.resize(count);
  const absl::Span<float> values(scratch.data(), count);
  SH_RETURN_IF_ERROR(weights.ReadRowsF32(name, first, values));
  return Annotate(EncodeFloats(values, dtype, out), name);
}

absl::Status LoadTensors(const Weights& weights, const std::vector<LoadTarget>& targets,
                         const LoadProgressCall& progress) {
  std::vector<const TensorInfo*> tensors;
  LoadProgress state;
  std::vector<uint64_t> row_bytes;  // as stored, by tensor
  for (const LoadTarget& target : targets) {
    const TensorInfo* info = weights.Find(target.name);
    if (info == nullptr) {
      return absl::NotFoundError(absl::StrCat("no tensor \"", target.name, "\""));
    }
    tensors.push_back(info);
    const auto stored = weights.RawBytes(target.name);
    row_bytes.push_back(stored.ok() ? stored->size() / static_cast<size_t>(info->Rows()) : 0);
    state.bytes_total += row_bytes.back() * static_cast<uint64_t>(info->Rows());
  }
  Mutex mutex;  // guards `state`
  const std::vector<RowBlock> blocks = RowBlocksOf(tensors);
  return ForEachBlock(blocks.size(), [&](size_t i) -> absl::Status {
    static thread_local std::vector<float> scratch;
    const RowBlock& block = blocks[i];
    const LoadTarget& target = targets[block.tensor];
    const TensorInfo& info = *tensors[block.tensor];
    const auto row = static_cast<size_t>(info.Count() / info.Rows()) * FloatBytes(target.dtype);
    SH_RETURN_IF_ERROR(ReadRowsAs(weights, target.name, block.first, target.dtype, scratch,
                                  {target.out + static_cast<size_t>(block.first) * row,
                                   static_cast<size_t>(block.rows) * row}));
    GiveBackRows(weights, info, block);
    if (progress == nullptr) return absl::OkStatus();
    MutexLock lock(mutex);
    state.bytes_done += static_cast<uint64_t>(block.rows) * row_bytes[block.tensor];
    progress(state);
    return absl::OkStatus();
  });
}

}  // namespace stillhouse

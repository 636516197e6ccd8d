#include "sharding/bucket_plan.h"

#include <algorithm>

#include "common/status.h"

namespace stillhouse {

BucketPlan::BucketPlan(const FlatLayout& layout, int ranks, const BucketOptions& options)
    : layout_(layout), ranks_(ranks), bucket_of_(layout.parameters().size(), kNone) {
  SH_CHECK(ranks >= 1 && options.elements_max >= 1);
  const std::vector<FlatParameter>& parameters = layout_.parameters();
  std::vector<bool> frozen(parameters.size(), false);
  for (const size_t parameter : options.frozen) frozen.at(parameter) = true;
  const auto end_of = [&](size_t i) {
    return i + 1 < parameters.size() ? parameters[i + 1].offset : layout_.size();
  };
  size_t first = 0;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const bool too_large = first < i && end_of(i) - parameters[first].offset > options.elements_max;
    if (too_large || frozen[i]) {
      if (first < i) Close({parameters[first].offset, parameters[i].offset}, first, i);
      first = frozen[i] ? i + 1 : i;
    }
  }
  if (first < parameters.size()) {
    Close({parameters[first].offset, layout_.size()}, first, parameters.size());
  }
  local_offsets_.resize(static_cast<size_t>(ranks));
  for (size_t rank = 0; rank < local_offsets_.size(); ++rank) {
    size_t offset = 0;
    for (const Bucket& bucket : buckets_) {
      local_offsets_[rank].push_back(offset);
      offset += bucket.shards[rank].size();
    }
    local_offsets_[rank].push_back(offset);
  }
}

void BucketPlan::Close(FlatRange range, size_t parameters_begin, size_t parameters_end) {
  Bucket bucket{range, parameters_begin, parameters_end, {}};
  const size_t units = range.size() / kFlatAlignment;
  const auto ranks = static_cast<size_t>(ranks_);
  // The odd units go to other ranks in every bucket.
  const size_t turn = buckets_.size() % ranks;
  size_t begin = 0;
  for (size_t rank = 0; rank < ranks; ++rank) {
    const size_t place = (rank + turn) % ranks;
    const size_t mine = units * (place + 1) / ranks - units * place / ranks;
    bucket.shards.push_back({begin, begin + mine * kFlatAlignment});
    begin = bucket.shards.back().end;
  }
  SH_CHECK(begin == range.size());
  for (size_t i = parameters_begin; i < parameters_end; ++i) bucket_of_[i] = buckets_.size();
  buckets_.push_back(std::move(bucket));
}

size_t BucketPlan::ShardSize(int rank) const { return local_offsets_.at(rank).back(); }

std::vector<ShardPiece> BucketPlan::PiecesOf(int rank) const {
  std::vector<ShardPiece> pieces;
  for (size_t b = 0; b < buckets_.size(); ++b) {
    const FlatRange part = buckets_[b].shards.at(rank);
    const size_t begin = buckets_[b].range.begin + part.begin;
    if (part.size() == 0) continue;
    if (!pieces.empty() && pieces.back().flat.end == begin) {
      pieces.back().flat.end += part.size();
    } else {
      pieces.push_back({{begin, begin + part.size()}, LocalOffset(rank, b)});
    }
  }
  return pieces;
}

size_t BucketPlan::LargestBucket() const {
  size_t largest = 0;
  for (const Bucket& bucket : buckets_) largest = std::max(largest, bucket.range.size());
  return largest;
}

}  // namespace stillhouse

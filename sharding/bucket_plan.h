// BucketPlan: how a flat buffer is cut into buckets, which are reduced one after the other, and
// which part of each bucket a rank owns (ZeRO stage 2; Rajbhandari et al., "ZeRO", SC 2020).
//
// A bucket is a run of whole parameters in the layout's order, which is the reverse order of use: a
// backward pass completes bucket 0 first, a forward pass needs the last one first. A parameter
// larger than a bucket is one of its own (docs/adr/0016). Every rank owns a contiguous part of
// every bucket, so that all have the same work at every moment; a rank's shard is its parts end to
// end, in the order of the buckets. Immutable and thread-safe.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "sharding/flat_layout.h"

namespace stillhouse {

struct Bucket {
  FlatRange range;                                  // of the flat buffer
  size_t parameters_begin = 0, parameters_end = 0;  // in the layout
  // By rank, from range.begin on: multiples of kFlatAlignment, equal to within one, that cover it.
  std::vector<FlatRange> shards;
};

// A part of a rank's shard: where it lies in the flat buffer, and where in the shard.
struct ShardPiece {
  FlatRange flat;
  size_t local = 0;
};

struct BucketOptions {
  // 25 MiB of fp32: large enough for a collective to run at full speed, small enough that the first
  // one starts early (what DistributedDataParallel uses).
  size_t elements_max = (25 << 20) / sizeof(float);
  // Indices of parameters without gradient, moments and masters. They end a bucket: a layout that
  // has them side by side makes fewer buckets.
  std::vector<size_t> frozen;
};

class BucketPlan {
 public:
  static constexpr size_t kNone = static_cast<size_t>(-1);

  // REQUIRES: ranks >= 1, elements_max >= 1, frozen are indices of the layout.
  BucketPlan(const FlatLayout& layout, int ranks, const BucketOptions& options = {});

  const FlatLayout& layout() const { return layout_; }
  int ranks() const { return ranks_; }
  const std::vector<Bucket>& buckets() const { return buckets_; }
  size_t BucketOf(size_t parameter) const { return bucket_of_[parameter]; }  // kNone: frozen

  size_t ShardSize(int rank) const;  // elements, padding included
  // Where the rank's part of a bucket begins in its shard.
  size_t LocalOffset(int rank, size_t bucket) const { return local_offsets_[rank][bucket]; }
  // The shard, ascending in both; neighbours are one piece.
  std::vector<ShardPiece> PiecesOf(int rank) const;
  size_t LargestBucket() const;  // elements

 private:
  void Close(FlatRange range, size_t parameters_begin, size_t parameters_end);

  FlatLayout layout_;
  int ranks_;
  std::vector<Bucket> buckets_;
  std::vector<size_t> bucket_of_;
  std::vector<std::vector<size_t>> local_offsets_;  // [rank][bucket], and the shard's size last
};

// Calls `copy(flat offset, local offset, count)` for what a rank owns of the flat range.
template <typename Copy>
void ForOwned(absl::Span<const ShardPiece> pieces, FlatRange range, Copy copy) {
  for (const ShardPiece& piece : pieces) {
    const size_t begin = piece.flat.begin > range.begin ? piece.flat.begin : range.begin;
    const size_t end = piece.flat.end < range.end ? piece.flat.end : range.end;
    if (begin < end) copy(begin, piece.local + (begin - piece.flat.begin), end - begin);
  }
}

}  // namespace stillhouse

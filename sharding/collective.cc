#include "sharding/collective.h"

#include <utility>

#include "common/status.h"

namespace stillhouse {
namespace {

absl::string_view OperationName(uint32_t operation) {
  switch (static_cast<Operation>(operation)) {
    case Operation::kReduceScatter:
      return "reduce-scatter";
    case Operation::kAllGather:
      return "all-gather";
    case Operation::kAllReduce:
      return "all-reduce";
    case Operation::kBroadcast:
      return "broadcast";
    case Operation::kAllToAll:
      return "all-to-all";
    case Operation::kBarrier:
      return "barrier";
  }
  return "unknown operation";
}

std::string Describe(const Agreement& agreement) {
  std::string text(OperationName(agreement.operation));
  if (static_cast<Operation>(agreement.operation) == Operation::kBarrier) return text;
  const absl::string_view dtype = DTypeName(static_cast<DType>(agreement.dtype));
  if (static_cast<Operation>(agreement.operation) == Operation::kAllToAll) {
    return absl::StrCat(text, " of ", dtype, ", ", agreement.offers, " sent and ",
                        agreement.expects, " received");
  }
  absl::StrAppend(&text, " of ", agreement.count, " ", dtype);
  if (static_cast<Operation>(agreement.operation) == Operation::kBroadcast) {
    absl::StrAppend(&text, " from rank ", agreement.root);
  }
  return text;
}

// FNV-1a over the boundaries; never 0.
uint64_t DigestOf(absl::Span<const FlatRange> shards) {
  uint64_t digest = 0xcbf29ce484222325u;
  for (const FlatRange& shard : shards) {
    for (const uint64_t word : {shard.begin, shard.end}) {
      digest = (digest ^ word) * 0x100000001b3u;
    }
  }
  return digest | 1;
}

// Shards are contiguous, in rank order, and cover `count` elements.
void CheckShards(absl::Span<const FlatRange> shards, int ranks, size_t count) {
  SH_CHECK(static_cast<int>(shards.size()) == ranks, shards.size(), " shards, ", ranks, " ranks");
  size_t end = 0;
  for (const FlatRange& shard : shards) {
    SH_CHECK(shard.begin == end && shard.end >= end);
    end = shard.end;
  }
  SH_CHECK(end == count, "shards of ", end, " elements for ", count);
}

void CheckRanges(absl::Span<const FlatRange> ranges, int ranks, size_t count) {
  SH_CHECK(static_cast<int>(ranges.size()) == ranks, ranges.size(), " ranges, ", ranks, " ranks");
  for (const FlatRange& range : ranges) SH_CHECK(range.begin <= range.end && range.end <= count);
}

}  // namespace

Agreement AgreementOf(const Collective& collective, int ranks, int peer) {
  Agreement agreement;
  agreement.operation = static_cast<uint32_t>(collective.operation);
  agreement.ranks = ranks;
  agreement.root = collective.root;
  if (collective.operation == Operation::kBarrier) return agreement;
  agreement.dtype = static_cast<uint32_t>(collective.input.dtype);
  if (collective.operation == Operation::kAllToAll) {
    agreement.offers = collective.sends[peer].size();
    agreement.expects = collective.receives[peer].size();
    return agreement;
  }
  agreement.count = collective.operation == Operation::kAllGather ? collective.output.count
                                                                  : collective.input.count;
  if (!collective.sends.empty()) agreement.shards = DigestOf(collective.sends);
  return agreement;
}

absl::Status CheckAgreement(const Agreement& mine, int peer, const Agreement& theirs) {
  if (mine.operation == theirs.operation && mine.dtype == theirs.dtype &&
      mine.root == theirs.root && mine.ranks == theirs.ranks && mine.count == theirs.count &&
      mine.shards == theirs.shards && mine.offers == theirs.expects &&
      mine.expects == theirs.offers) {
    return absl::OkStatus();
  }
  return absl::AbortedError(absl::StrCat(
      "collective: the ranks started different operations: ", Describe(mine), " here, ",
      Describe(theirs), " on rank ", peer, mine.shards != theirs.shards ? ", other shards" : ""));
}

FlatRange AllReducePart(size_t count, int rank, int ranks) {
  return {count * rank / ranks, count * (rank + 1) / ranks};
}

Communicator::Pending CheckedCommunicator::ReduceScatter(const TensorView& input,
                                                         absl::Span<const FlatRange> shards,
                                                         const TensorView& output) {
  SH_CHECK(input.dtype == DType::kF32 || input.dtype == DType::kBF16);
  CheckShards(shards, size(), input.count);
  SH_CHECK(output.dtype == DType::kF32 && output.count == shards[rank()].size());
  return Begin({Operation::kReduceScatter, input, output, {shards.begin(), shards.end()}, {}});
}

Communicator::Pending CheckedCommunicator::AllGather(const TensorView& input,
                                                     absl::Span<const FlatRange> shards,
                                                     const TensorView& output) {
  CheckShards(shards, size(), output.count);
  SH_CHECK(input.dtype == output.dtype && input.count == shards[rank()].size());
  return Begin({Operation::kAllGather, input, output, {shards.begin(), shards.end()}, {}});
}

Communicator::Pending CheckedCommunicator::AllReduceSum(const TensorView& in_out) {
  SH_CHECK(in_out.dtype == DType::kF32);
  return Begin({Operation::kAllReduce, in_out, in_out, {}, {}});
}

Communicator::Pending CheckedCommunicator::Broadcast(const TensorView& in_out, int root) {
  SH_CHECK(0 <= root && root < size());
  return Begin({Operation::kBroadcast, in_out, in_out, {}, {}, root});
}

Communicator::Pending CheckedCommunicator::AllToAll(const TensorView& input,
                                                    absl::Span<const FlatRange> sends,
                                                    const TensorView& output,
                                                    absl::Span<const FlatRange> receives) {
  SH_CHECK(input.dtype == output.dtype);
  CheckRanges(sends, size(), input.count);
  CheckRanges(receives, size(), output.count);
  SH_CHECK(sends[rank()].size() == receives[rank()].size());
  return Begin({Operation::kAllToAll,
                input,
                output,
                {sends.begin(), sends.end()},
                {receives.begin(), receives.end()}});
}

Communicator::Pending CheckedCommunicator::Barrier() { return Begin({}); }

}  // namespace stillhouse

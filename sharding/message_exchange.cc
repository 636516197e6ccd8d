#include "sharding/message_exchange.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/status.h"
#include "sharding/rank_sum.h"

namespace stillhouse {
namespace {

constexpr int kAgreementTag = 0;
constexpr uint64_t kRoundsMax = (MessageLayer::kTagsMax - 1) / 2;  // collectives with tags apart

char* At(const TensorView& view, size_t element) {
  return static_cast<char*>(view.data) + element * DTypeSize(view.dtype);
}

void CopyOwn(const TensorView& from, FlatRange range, const TensorView& to, size_t place) {
  if (range.size() == 0 || At(from, range.begin) == At(to, place)) return;
  std::memmove(At(to, place), At(from, range.begin), range.size() * DTypeSize(to.dtype));
}

std::vector<FlatRange> AllReduceParts(size_t count, int ranks) {
  std::vector<FlatRange> parts;
  for (int rank = 0; rank < ranks; ++rank) parts.push_back(AllReducePart(count, rank, ranks));
  return parts;
}

}  // namespace

Exchange::Exchange(Collective collective, uint64_t sequence, MessageLayer& layer,
                   const MessageOptions& options, FlatBuffer<char> staging)
    : collective_(std::move(collective)),
      sequence_(sequence),
      layer_(layer),
      options_(options),
      staging_(std::move(staging)),
      peers_(layer.size()) {
  for (int rank = 0; rank < layer_.size(); ++rank) {
    peers_[rank].mine = AgreementOf(collective_, layer_.size(), rank);
  }
}

size_t Exchange::StagingBytes(const Collective& collective, int ranks,
                              const MessageOptions& options) {
  if (collective.operation != Operation::kReduceScatter &&
      collective.operation != Operation::kAllReduce) {
    return 0;
  }
  return options.piece_bytes * options.pieces_in_flight * (ranks - 1);
}

absl::Status Exchange::Start() {
  for (int rank = 0; rank < layer_.size(); ++rank) {
    if (rank == layer_.rank()) continue;
    Peer& peer = peers_[rank];
    SH_ASSIGN_OR_RETURN(peer.receiving,
                        layer_.Receive(rank, kAgreementTag, &peer.theirs, sizeof(peer.theirs)));
    SH_ASSIGN_OR_RETURN(peer.sending,
                        layer_.Send(rank, kAgreementTag, &peer.mine, sizeof(peer.mine)));
  }
  Build();
  return Advance().status();
}

void Exchange::Build() {
  switch (collective_.operation) {
    case Operation::kReduceScatter:
      return BuildReduction(collective_.sends, static_cast<float*>(collective_.output.data));
    case Operation::kAllGather:
      return BuildAllGather();
    case Operation::kAllReduce:
      return BuildAllReduce();
    case Operation::kBroadcast:
      return BuildBroadcast();
    case Operation::kAllToAll:
      return BuildAllToAll();
    case Operation::kBarrier:
      return;
  }
}

Exchange::Stream& Exchange::AddStream(int peer, int phase, bool sends, const TensorView& view,
                                      FlatRange range) {
  Stream& stream = streams_.emplace_back();
  stream.peer = peer;
  stream.phase = phase;
  stream.sends = sends;
  stream.bytes = range.size() * DTypeSize(view.dtype);
  stream.data = stream.bytes == 0 ? nullptr : At(view, range.begin);
  return stream;
}

// Each rank's slice of our part comes here into slots; theirs go there.
void Exchange::BuildReduction(const std::vector<FlatRange>& parts, float* output) {
  const FlatRange own = parts[layer_.rank()];
  const size_t slots_bytes = options_.piece_bytes * options_.pieces_in_flight;
  sum_bytes_ = own.size() * DTypeSize(collective_.input.dtype);
  sum_output_ = output;
  own_part_ = sum_bytes_ == 0 ? nullptr : At(collective_.input, own.begin);
  staging_limit_ = slots_bytes;
  slices_.assign(layer_.size(), nullptr);
  char* slots = staging_.data();
  for (int rank = 0; rank < layer_.size(); ++rank) {
    if (rank == layer_.rank()) continue;
    AddStream(rank, /*phase=*/0, /*sends=*/true, collective_.input, parts[rank]);
    Stream& slice = AddStream(rank, /*phase=*/0, /*sends=*/false, collective_.input, own);
    slice.data = std::exchange(slots, slots + slots_bytes);
    slice.slots = options_.pieces_in_flight;
    slice.limit = &staging_limit_;
    slices_[rank] = &slice;
  }
}

// A reduction, whose sums go to all. A part may be overwritten once what it held is sent.
void Exchange::BuildAllReduce() {
  const TensorView& view = collective_.input;
  const std::vector<FlatRange> parts = AllReduceParts(view.count, layer_.size());
  const FlatRange own = parts[layer_.rank()];
  BuildReduction(parts, own.size() == 0 ? nullptr : reinterpret_cast<float*>(At(view, own.begin)));
  std::vector<const Stream*> slices_sent(layer_.size());
  for (const Stream& stream : streams_) {
    if (stream.sends) slices_sent[stream.peer] = &stream;
  }
  for (int rank = 0; rank < layer_.size(); ++rank) {
    if (rank == layer_.rank()) continue;
    AddStream(rank, /*phase=*/1, /*sends=*/true, view, own).limit = &summed_;
    AddStream(rank, /*phase=*/1, /*sends=*/false, view, parts[rank]).limit =
        &slices_sent[rank]->finished;
  }
}

void Exchange::BuildAllGather() {
  const std::vector<FlatRange>& shards = collective_.sends;
  const FlatRange own = {0, collective_.input.count};
  CopyOwn(collective_.input, own, collective_.output, shards[layer_.rank()].begin);
  for (int rank = 0; rank < layer_.size(); ++rank) {
    if (rank == layer_.rank()) continue;
    AddStream(rank, /*phase=*/0, /*sends=*/true, collective_.input, own);
    AddStream(rank, /*phase=*/0, /*sends=*/false, collective_.output, shards[rank]);
  }
}

// Along a binomial tree: a rank hands on what it has received.
void Exchange::BuildBroadcast() {
  const int ranks = layer_.size();
  const FlatRange all = {0, collective_.input.count};
  const int place = (layer_.rank() - collective_.root + ranks) % ranks;
  const auto rank_at = [&](int at) { return (at + collective_.root) % ranks; };
  const size_t* received = nullptr;
  int below = 1;  // the lowest bit of `place`; for the root the first power of two not below ranks
  while (below < ranks && (place & below) == 0) below *= 2;
  if (place != 0) {
    Stream& from =
        AddStream(rank_at(place - below), /*phase=*/0, /*sends=*/false, collective_.output, all);
    received = &from.finished;
  }
  for (int bit = below / 2; bit >= 1; bit /= 2) {
    if (place + bit >= ranks) continue;
    AddStream(rank_at(place + bit), /*phase=*/0, /*sends=*/true, collective_.output, all).limit =
        received;
  }
}

void Exchange::BuildAllToAll() {
  const int own = layer_.rank();
  CopyOwn(collective_.input, collective_.sends[own], collective_.output,
          collective_.receives[own].begin);
  for (int rank = 0; rank < layer_.size(); ++rank) {
    if (rank == own) continue;
    AddStream(rank, /*phase=*/0, /*sends=*/true, collective_.input, collective_.sends[rank]);
    AddStream(rank, /*phase=*/0, /*sends=*/false, collective_.output, collective_.receives[rank]);
  }
}

absl::StatusOr<bool> Exchange::Advance() {
  SH_ASSIGN_OR_RETURN(bool moved, AdvanceAgreements());
  for (Stream& stream : streams_) {
    SH_ASSIGN_OR_RETURN(const bool stream_moved, AdvanceStream(stream));
    moved |= stream_moved;
  }
  moved |= SumWhatIsThere();
  return moved;
}

absl::StatusOr<bool> Exchange::AdvanceAgreements() {
  bool moved = false;
  for (int rank = 0; rank < layer_.size(); ++rank) {
    if (rank == layer_.rank()) continue;
    Peer& peer = peers_[rank];
    if (!peer.told) {
      SH_ASSIGN_OR_RETURN(peer.told, layer_.Test(peer.sending));
      moved |= peer.told;
    }
    if (!peer.heard) {
      SH_ASSIGN_OR_RETURN(peer.heard, layer_.Test(peer.receiving));
      if (!peer.heard) continue;
      SH_RETURN_IF_ERROR(CheckAgreement(peer.mine, rank, peer.theirs));
      moved = true;
    }
  }
  return moved;
}

absl::StatusOr<bool> Exchange::AdvanceStream(Stream& stream) {
  bool moved = false;
  while (!stream.in_flight.empty()) {
    SH_ASSIGN_OR_RETURN(const bool over, layer_.Test(stream.in_flight.front()));
    if (!over) break;
    stream.in_flight.pop_front();
    stream.finished = std::min(stream.finished + options_.piece_bytes, stream.bytes);
    moved = true;
  }
  // Nothing is received of a rank that may have started something else.
  if (!stream.sends && !peers_[stream.peer].heard) return moved;
  while (stream.started < stream.bytes &&
         static_cast<int>(stream.in_flight.size()) < options_.pieces_in_flight) {
    const size_t end = std::min(stream.started + options_.piece_bytes, stream.bytes);
    if (stream.limit != nullptr && end > *stream.limit) break;
    const size_t piece = stream.started / options_.piece_bytes;
    char* place = stream.data + (stream.slots == 0 ? stream.started
                                                   : piece % stream.slots * options_.piece_bytes);
    const int tag = 1 + 2 * static_cast<int>(sequence_ % kRoundsMax) + stream.phase;
    const size_t bytes = end - stream.started;
    SH_ASSIGN_OR_RETURN(const MessageLayer::Request request,
                        stream.sends ? layer_.Send(stream.peer, tag, place, bytes)
                                     : layer_.Receive(stream.peer, tag, place, bytes));
    stream.in_flight.push_back(request);
    stream.started = end;
    moved = true;
  }
  return moved;
}

bool Exchange::SumWhatIsThere() {
  const size_t width = DTypeSize(collective_.input.dtype);
  bool moved = false;
  while (summed_ < sum_bytes_) {
    const size_t end = std::min(summed_ + options_.piece_bytes, sum_bytes_);
    const size_t slot = summed_ / options_.piece_bytes % options_.pieces_in_flight;
    std::vector<const void*> parts;
    for (const Stream* slice : slices_) {
      if (slice == nullptr) {
        parts.push_back(own_part_ + summed_);
        continue;
      }
      if (slice->finished < end) return moved;
      parts.push_back(slice->data + slot * options_.piece_bytes);
    }
    SumInRankOrder(parts, collective_.input.dtype, (end - summed_) / width,
                   sum_output_ + summed_ / width);
    summed_ = end;
    staging_limit_ = end + options_.piece_bytes * options_.pieces_in_flight;
    moved = true;
  }
  return moved;
}

bool Exchange::done() const {
  if (summed_ < sum_bytes_) return false;
  for (int rank = 0; rank < layer_.size(); ++rank) {
    if (rank != layer_.rank() && !(peers_[rank].told && peers_[rank].heard)) return false;
  }
  return std::all_of(streams_.begin(), streams_.end(),
                     [](const Stream& stream) { return stream.finished == stream.bytes; });
}

std::vector<int> Exchange::Awaited() const {
  std::vector<bool> awaited(layer_.size());
  for (int rank = 0; rank < layer_.size(); ++rank) {
    awaited[rank] = rank != layer_.rank() && !peers_[rank].heard;
  }
  if (std::find(awaited.begin(), awaited.end(), true) == awaited.end()) {
    for (const Stream& stream : streams_) {
      if (stream.finished < stream.bytes) awaited[stream.peer] = true;
    }
  }
  std::vector<int> ranks;
  for (int rank = 0; rank < layer_.size(); ++rank) {
    if (awaited[rank]) ranks.push_back(rank);
  }
  return ranks;
}

}  // namespace stillhouse

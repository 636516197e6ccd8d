// Collectives between the ranks of one machine, at a size that a sharded step uses.
//
//   communicator_bench RANKS                 thread communicator: nothing is copied, so a floor
//   mpirun -n RANKS communicator_bench mpi   the MPI communicator, and MPI's own collectives beside
//   it
//
// reduce-scatter  fp32 and bf16 into fp32, even shards
// all-gather      bf16
// all-reduce      fp32
// overlap         a bf16 reduce-scatter started before a computation that needs about as long:
//                 the time of both, the computation polling never, after every block, or a thread
//                 doing so
//
// Rounds of ours and of the baseline take turns. Prints the median and the fastest of rank 0, in
// ms.
#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/clock.h"
#include "common/status.h"
#include "sharding/mpi_world.h"

namespace stillhouse {
namespace {

constexpr size_t kElements = 32 << 20;  // 128 MiB of fp32, 64 of bf16
constexpr int kRounds = 7;
constexpr absl::Duration kDeadline = absl::Minutes(5);

struct Buffers {
  explicit Buffers(int rank, int ranks) : f32(kElements, 1.0f), bf16(kElements, 0x3f80) {
    for (int r = 0; r < ranks; ++r) {
      shards.push_back({kElements * r / ranks, kElements * (r + 1) / ranks});
    }
    own = shards[rank];
    shard.resize(own.size());
    bf16_shard.assign(own.size(), 0x3f80);
  }
  std::vector<float> f32, shard;
  std::vector<uint16_t> bf16, bf16_shard;
  std::vector<FlatRange> shards;
  FlatRange own;
};
TensorView View(std::vector<float>& v) { return {v.data(), v.size(), DType::kF32}; }
TensorView View(std::vector<uint16_t>& v) { return {v.data(), v.size(), DType::kBF16}; }

void Finish(Communicator::Pending pending) {
  SH_CHECK_OK(pending);
  SH_CHECK_OK((*pending)->Wait());
}

struct Way {
  std::string name;
  std::function<void()> run;
  std::vector<double> ms;
};

void Measure(Communicator& communicator, const std::string& what, std::vector<Way> ways) {
  for (int round = 0; round <= kRounds; ++round) {
    for (Way& way : ways) {
      Finish(communicator.Barrier());
      const absl::Duration began = SystemClock().Now();
      way.run();
      const double ms = absl::ToDoubleMilliseconds(SystemClock().Now() - began);
      if (round > 0) way.ms.push_back(ms);  // the first touches the memory
    }
  }
  if (communicator.rank() != 0) return;
  for (Way& way : ways) {
    std::sort(way.ms.begin(), way.ms.end());
    std::printf("%-22s %-24s median %8.1f   fastest %8.1f\n", what.c_str(), way.name.c_str(),
                way.ms[way.ms.size() / 2], way.ms[0]);
  }
  std::fflush(stdout);
}

// Some arithmetic on memory of its own, in blocks; calls `after_block` after each.
void Compute(std::vector<float>& memory, const std::function<void()>& after_block) {
  constexpr size_t kBlock = 64 << 10;
  for (int pass = 0; pass < 4; ++pass) {
    for (size_t begin = 0; begin + kBlock <= memory.size(); begin += kBlock) {
      for (size_t i = begin; i < begin + kBlock; ++i) memory[i] = memory[i] * 0.999f + 1e-3f;
      after_block();
    }
  }
}

void MeasureOverlap(Communicator& communicator, Buffers& buffers) {
  std::vector<float> memory(8 << 20, 1.0f);
  const auto start = [&] {
    auto pending =
        communicator.ReduceScatter(View(buffers.bf16), buffers.shards, View(buffers.shard));
    SH_CHECK_OK(pending);
    return *std::move(pending);
  };
  Measure(communicator, "overlap",
          {{"computation alone", [&] { Compute(memory, [] {}); }, {}},
           {"collective alone", [&] { SH_CHECK_OK(start()->Wait()); }, {}},
           {"both, no poll",
            [&] {
              const auto pending = start();
              Compute(memory, [] {});
              SH_CHECK_OK(pending->Wait());
            },
            {}},
           {"both, polling",
            [&] {
              const auto pending = start();
              Compute(memory, [&] { SH_CHECK_OK(pending->Poll()); });
              SH_CHECK_OK(pending->Wait());
            },
            {}},
           {"both, a thread polls",
            [&] {
              const auto pending = start();
              std::atomic<bool> computed = false;
              std::thread poller([&] {
                while (!computed) {
                  SH_CHECK_OK(pending->Poll());
                  std::this_thread::yield();
                }
              });
              Compute(memory, [] {});
              computed = true;
              poller.join();
              SH_CHECK_OK(pending->Wait());
            },
            {}}});
}

// With `baseline`, MPI's own collectives take turns with ours.
void MeasureAll(Communicator& communicator, bool baseline) {
  Buffers buffers(communicator.rank(), communicator.size());
  std::vector<int> counts, places;
  for (const FlatRange& shard : buffers.shards) {
    counts.push_back(static_cast<int>(shard.size()));
    places.push_back(static_cast<int>(shard.begin));
  }
  const auto with = [&](std::function<void()> ours, std::function<void()> mpi) {
    std::vector<Way> ways = {{"ours", std::move(ours), {}}};
    if (baseline) ways.push_back({"MPI's own", std::move(mpi), {}});
    return ways;
  };
  Measure(communicator, "reduce-scatter fp32",
          with(
              [&] {
                Finish(communicator.ReduceScatter(View(buffers.f32), buffers.shards,
                                                  View(buffers.shard)));
              },
              [&] {
                MPI_Reduce_scatter(buffers.f32.data(), buffers.shard.data(), counts.data(),
                                   MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
              }));
  Measure(communicator, "reduce-scatter bf16",
          {{"ours",
            [&] {
              Finish(communicator.ReduceScatter(View(buffers.bf16), buffers.shards,
                                                View(buffers.shard)));
            },
            {}}});
  Measure(communicator, "all-gather bf16",
          with(
              [&] {
                Finish(communicator.AllGather(View(buffers.bf16_shard), buffers.shards,
                                              View(buffers.bf16)));
              },
              [&] {
                MPI_Allgatherv(buffers.bf16_shard.data(), counts[communicator.rank()], MPI_UINT16_T,
                               buffers.bf16.data(), counts.data(), places.data(), MPI_UINT16_T,
                               MPI_COMM_WORLD);
              }));
  Measure(communicator, "all-reduce fp32",
          with([&] { Finish(communicator.AllReduceSum(View(buffers.f32))); },
               [&] {
                 MPI_Allreduce(MPI_IN_PLACE, buffers.f32.data(), static_cast<int>(kElements),
                               MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
               }));
  MeasureOverlap(communicator, buffers);
}

void RunThreads(int ranks) {
  auto communicators = MakeThreadCommunicators(ranks, kDeadline);
  std::vector<std::thread> threads;
  for (auto& communicator : communicators) {
    threads.emplace_back([&] { MeasureAll(*communicator, /*baseline=*/false); });
  }
  for (std::thread& thread : threads) thread.join();
}

void RunMpi(size_t piece_bytes) {
  auto world = MpiWorld::Init();
  SH_CHECK_OK(world);
  auto communicator =
      (*world)->MakeCommunicator({.deadline = kDeadline, .piece_bytes = piece_bytes});
  SH_CHECK_OK(communicator);
  MeasureAll(**communicator, /*baseline=*/true);
  SH_CHECK_OK((*world)->Close(kDeadline));
}

}  // namespace
}  // namespace stillhouse

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: communicator_bench RANKS | mpi [PIECE_KIB]\n");
    return 2;
  }
  if (std::strcmp(argv[1], "mpi") == 0) {
    const int piece_kib = argc > 2 ? std::max(1, std::atoi(argv[2])) : 0;
    const stillhouse::MessageOptions defaults;
    stillhouse::RunMpi(piece_kib > 0 ? static_cast<size_t>(piece_kib) << 10 : defaults.piece_bytes);
  } else {
    stillhouse::RunThreads(std::max(1, std::atoi(argv[1])));
  }
  return 0;
}

// fuzz: runs one target on mutated inputs for some seconds, under the sanitizers.
//
//   fuzz --list
//   fuzz TARGET [--seconds S] [--seed N] [--only ITERATION]
//
// An input is a pure function of the seed and the iteration, so a crash is found again with --only;
// both are printed when the process dies.
#include <atomic>
#include <cstdio>
#include <string>

#include "common/clock.h"
#include "common/command_line.h"
#include "common/status.h"
#include "tests/fuzz/mutate.h"
#include "tests/fuzz/target.h"

extern "C" void __sanitizer_set_death_callback(void (*callback)()) __attribute__((weak));

namespace stillhouse {
namespace {

uint64_t seed = 1;
std::atomic<uint64_t> iteration = 0;  // of the input under test

void SayWhere() {
  std::fprintf(stderr, "fuzz: died at --seed %llu --only %llu\n",
               static_cast<unsigned long long>(seed),
               static_cast<unsigned long long>(iteration.load()));
}

int RunTarget(const FuzzTarget& target, double seconds) {
  const absl::Duration end = SystemClock().Now() + absl::Seconds(seconds);
  for (iteration = 0; SystemClock().Now() < end; ++iteration) {
    target.run(Mutate(target.seeds, seed, iteration));
  }
  std::printf("fuzz: %s: %llu inputs\n", target.name.c_str(),
              static_cast<unsigned long long>(iteration.load()));
  return iteration >= target.seeds.size() ? kExitOk : kExitFailed;
}

int Main(int argc, char** argv) {
  CommandLine command_line("Tries parsers on hostile bytes", "fuzz");
  std::string name;
  double seconds = 5;
  int64_t only = -1;
  bool list = false;
  command_line.AddOption("TARGET", &name);
  command_line.AddOption("--seconds", &seconds);
  command_line.AddOption("--seed", &seed);
  command_line.AddOption("--only", &only);
  command_line.AddFlag("--list", &list);
  if (const auto code = command_line.Parse(argc, argv)) return *code;
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(SayWhere);
  for (const auto& targets : {FormatTargets(), StorageTargets(), TextAndWireTargets()}) {
    for (const FuzzTarget& target : targets) {
      if (list) std::printf("%s\n", target.name.c_str());
      if (list || target.name != name) continue;
      if (only < 0) return RunTarget(target, seconds);
      iteration = static_cast<uint64_t>(only);
      target.run(Mutate(target.seeds, seed, iteration));
      return kExitOk;
    }
  }
  if (!list) std::fprintf(stderr, "fuzz: no target '%s' (--list)\n", name.c_str());
  return list ? kExitOk : kExitUsage;
}

}  // namespace
}  // namespace stillhouse

int main(int argc, char** argv) { return stillhouse::Main(argc, argv); }

// A cache with parts of every kind of storage (through the log, flushed, ingested) and objects, and
// what tests do to it and ask of it afterwards.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "common/file.h"
#include "common/random.h"
#include "common/status.h"
#include "storage/cache_directory.h"
#include "storage/cache_repair.h"
#include "storage/cache_verify.h"
#include "tests/storage/damage_record.h"
#include "tests/storage/section_fixtures.h"

namespace stillhouse {

inline constexpr uint64_t kAnyBytes = 1ull << 30;

// Document d of the test cache: every fourth is large enough to be ingested.
inline PutItem DamageItem(int d) {
  const bool large = d % 4 == 3;
  const SectionSpec spec = large ? HiddenSpec(8192) : (d % 2 == 0 ? SectionSpec{} : SampledSpec());
  return {TestParts(spec, TestDocument(d), large ? 300 : 40, d),
          TestProvenance(spec, /*chunk=*/d / 8)};
}
inline std::string DamageObject(int i) {
  return std::string(5'000 + i, static_cast<char>('a' + i));
}

inline std::unique_ptr<CacheDirectory> OpenCache(const std::string& path) {
  auto cache = CacheDirectory::Open({.path = path, .disk_reserve_bytes = 0});
  SH_CHECK_OK(cache);
  return *std::move(cache);
}
inline void PutDocuments(CacheDirectory& cache, int begin, int end) {
  for (int d = begin; d < end; ++d) SH_CHECK_OK(cache.sections().Put({DamageItem(d)}));
}
inline void PutObject(CacheDirectory& cache, int i) {
  const std::string bytes = DamageObject(i);
  SH_CHECK_OK(cache.objects().PutPiece(
      {absl::StrCat("artefact/", i), bytes.size(), 0, false, static_cast<uint64_t>(i), bytes}));
}

// Documents [0, documents) in `sittings`, each ending with a clean stop.
inline void FillCache(const std::string& path, int documents, int sittings) {
  for (int s = 0; s < sittings; ++s) {
    const auto cache = OpenCache(path);
    PutObject(*cache, s);
    PutDocuments(*cache, documents * s / sittings, documents * (s + 1) / sittings);
    SH_CHECK_OK(cache->Close());
  }
}

// The files as they are now, a database that holds them open included: what a power cut would leave
// if everything written had reached the disk.
inline void CopyCache(const std::string& from, const std::string& to) {
  const std::string database = JoinPath(from, "db"), copy = JoinPath(to, "db");
  SH_CHECK_OK(MakeFolders(copy));
  const std::vector<std::string> names = *ListFolder(database);
  for (const std::string& name : names) {
    SH_CHECK_OK(WriteFileAtomically(JoinPath(copy, name), *ReadFile(JoinPath(database, name))));
  }
}

inline std::vector<std::string> DatabaseFiles(const std::string& path, const std::string& suffix) {
  std::vector<std::string> files;
  const std::vector<std::string> names = *ListFolder(JoinPath(path, "db"));
  for (const std::string& name : names) {
    if (name.ends_with(suffix)) files.push_back(JoinPath(JoinPath(path, "db"), name));
  }
  return files;
}
inline std::string ManifestOf(const std::string& path) {
  std::string name = *ReadFile(JoinPath(path, "db/CURRENT"));
  while (!name.empty() && name.back() == '\n') name.pop_back();
  return JoinPath(JoinPath(path, "db"), name);
}
inline void FlipBit(const std::string& file, uint64_t byte, int bit) {
  std::string bytes = *ReadFile(file);
  bytes[byte] ^= static_cast<char>(1 << bit);
  SH_CHECK_OK(WriteFileAtomically(file, bytes));
}
inline void CutFile(const std::string& file, uint64_t bytes) {
  SH_CHECK_OK(WriteFileAtomically(file, ReadFile(file)->substr(0, bytes)));
}

// How the parts of documents [0, documents) answer.
struct Served {
  int whole = 0, absent = 0, damaged = 0, wrong = 0;
};
inline Served AskAll(CacheDirectory& cache, int documents) {
  Served served;
  for (int d = 0; d < documents; ++d) {
    const PutItem item = DamageItem(d);
    for (const Part& part : item.parts) {
      const auto got = cache.sections().Get({part.key}, kAnyBytes);
      if (!got.ok()) {
        ++(absl::IsDataLoss(got.status()) ? served.damaged : served.wrong);
      } else if (!(*got)[0].has_value()) {
        ++served.absent;
      } else {
        ++((*got)[0]->payload == part.payload ? served.whole : served.wrong);
      }
    }
  }
  return served;
}
inline int PartsOf(int documents) {
  int parts = 0;
  for (int d = 0; d < documents; ++d) parts += static_cast<int>(DamageItem(d).parts.size());
  return parts;
}

inline std::vector<std::string> VerifyAll(CacheDirectory& cache) {
  std::vector<std::string> problems;
  std::string next;
  do {
    const auto step = VerifyCache(cache.sections(), cache.objects(), next);
    if (!step.ok()) {
      problems.push_back(step.status().ToString());
      break;
    }
    problems.insert(problems.end(), step->problems.begin(), step->problems.end());
    next = step->next;
  } while (!next.empty());
  return problems;
}

struct Repaired {
  CacheRepairReport report;
  std::vector<std::string> gone;
};
inline absl::StatusOr<Repaired> Repair(const std::string& path, bool dry_run = false) {
  Repaired repaired;
  auto report = RepairCache({.path = path, .dry_run = dry_run, .on_gone = [&](const auto& line) {
                               repaired.gone.push_back(line);
                             }});
  if (!report.ok()) return report.status();
  repaired.report = *std::move(report);
  return repaired;
}

// The cache is clean, serves at least `whole` parts of so many documents, and takes the rest again.
inline void ExpectMended(const std::string& path, int documents, int whole) {
  const auto cache = OpenCache(path);
  const Served served = AskAll(*cache, documents);
  EXPECT_GE(served.whole, whole);
  EXPECT_EQ(served.whole + served.absent, PartsOf(documents));
  EXPECT_THAT(VerifyAll(*cache), testing::IsEmpty());
  PutDocuments(*cache, 0, documents);
  EXPECT_EQ(AskAll(*cache, documents).whole, PartsOf(documents));
  EXPECT_THAT(VerifyAll(*cache), testing::IsEmpty());
  SH_CHECK_OK(cache->Close());
}

}  // namespace stillhouse

// The cache over a file system that forgets what was not synced: whatever was acknowledged before a
// power cut is there after it, once, and the cache is clean.
//
// One run of a random schedule is cut at many edges: at each the disk is copied as a power cut
// there would leave it, together with what had been acknowledged by then. Fails with its seed; more
// seeds by SH_POWER_CUT_SEEDS=n.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rocksdb/env.h>
#include <rocksdb/file_system.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <set>

#include "absl/strings/match.h"
#include "common/mutex.h"
#include "tests/storage/damage_fixture.h"

namespace stillhouse {
namespace {

using rocksdb::FileOptions;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using testing::IsEmpty;

// What of the unsynced reaches the disk.
enum class Fate { kNothing, kPrefixes, kAll };

// Forwards to the machine's files and knows what of them would survive. Names survive once their
// folder was synced after they came, went or changed; bytes once their file was synced.
class ForgetfulFiles final : public rocksdb::FileSystemWrapper {
 public:
  // `root` is what a power cut copies; `shadow` holds a link to every file ever made.
  ForgetfulFiles(const std::string& root, std::string shadow)
      : rocksdb::FileSystemWrapper(rocksdb::FileSystem::Default()),
        root_(root),
        shadow_(std::move(shadow)) {
    for (const std::string& folder : {root, JoinPath(root, "db")}) {
      const auto names = ListFolder(folder);
      if (!names.ok()) continue;
      for (const std::string& name : *names) {
        const std::string path = JoinPath(folder, name);
        struct stat info {};
        if (stat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) continue;
        Made(path);
        inodes_[now_[path]].synced = info.st_size;
      }
    }
    durable_ = now_;
  }
  const char* Name() const override { return "ForgetfulFiles"; }

  // Called at every edge, before and after it, with the files standing still.
  std::function<void()> on_edge;

  IOStatus NewWritableFile(const std::string& path, const FileOptions& options,
                           std::unique_ptr<rocksdb::FSWritableFile>* file,
                           IODebugContext* debug) override;
  IOStatus ReopenWritableFile(const std::string& path, const FileOptions& options,
                              std::unique_ptr<rocksdb::FSWritableFile>* file,
                              IODebugContext* debug) override;
  IOStatus NewDirectory(const std::string& path, const IOOptions& options,
                        std::unique_ptr<rocksdb::FSDirectory>* folder,
                        IODebugContext* debug) override;
  IOStatus DeleteFile(const std::string& path, const IOOptions& options,
                      IODebugContext* debug) override {
    return AtEdge([&] {
      const IOStatus status = target()->DeleteFile(path, options, debug);
      if (status.ok()) now_.erase(path);
      return status;
    });
  }
  IOStatus RenameFile(const std::string& from, const std::string& to, const IOOptions& options,
                      IODebugContext* debug) override {
    return AtEdge([&] {
      const IOStatus status = target()->RenameFile(from, to, options, debug);
      if (status.ok()) {
        now_[to] = now_[from];
        now_.erase(from);
      }
      return status;
    });
  }
  IOStatus LinkFile(const std::string& from, const std::string& to, const IOOptions& options,
                    IODebugContext* debug) override {
    return AtEdge([&] {
      const IOStatus status = target()->LinkFile(from, to, options, debug);
      if (status.ok()) now_[to] = now_[from];
      return status;
    });
  }

  IOStatus Synced(const std::string& path, const std::function<IOStatus()>& sync) {
    return AtEdge([&] {
      const IOStatus status = sync();
      struct stat info {};
      if (status.ok() && stat(path.c_str(), &info) == 0) inodes_[now_[path]].synced = info.st_size;
      return status;
    });
  }
  IOStatus FolderSynced(const std::string& folder, const std::function<IOStatus()>& sync) {
    return AtEdge([&] {
      const IOStatus status = sync();
      if (!status.ok()) return status;
      const auto within = [&](const std::string& path) {
        return FolderOf(path) == FolderOf(JoinPath(folder, "x"));
      };
      std::erase_if(durable_, [&](const auto& entry) { return within(entry.first); });
      for (const auto& [path, inode] : now_) {
        if (within(path)) durable_[path] = inode;
      }
      return status;
    });
  }

  // Into `to`, the disk as a power cut at this edge leaves it. REQUIRES: called by on_edge.
  void Copy(const std::string& to, Fate fate, RandomStream& random) {
    SH_CHECK_OK(MakeFolders(JoinPath(to, "db")));
    for (const auto& [path, id] : fate == Fate::kNothing ? durable_ : now_) {
      const Inode& inode = inodes_[id];
      const std::string kept = Shadow(id);
      const std::string target = to + path.substr(root_.size());
      struct stat info {};
      SH_CHECK(stat(kept.c_str(), &info) == 0, kept);
      const uint64_t size = info.st_size;
      uint64_t length = std::min(inode.synced, size);
      if (fate == Fate::kAll) length = size;
      if (fate == Fate::kPrefixes && size > length) length += random.NextBelow(size - length + 1);
      if (length == size && absl::EndsWith(path, ".sst")) {
        SH_CHECK(link(kept.c_str(), target.c_str()) == 0);
      } else {
        SH_CHECK_OK(WriteFileAtomically(target, ReadFile(kept)->substr(0, length)));
      }
    }
  }

 private:
  struct Inode {
    uint64_t synced = 0;  // bytes
  };

  std::string Shadow(int id) const { return JoinPath(shadow_, absl::StrCat(id)); }
  void Made(const std::string& path) {
    const int id = static_cast<int>(inodes_.size());
    inodes_.emplace_back();
    now_[path] = id;
    SH_CHECK(link(path.c_str(), Shadow(id).c_str()) == 0, path);
  }
  template <typename Work>
  IOStatus AtEdge(Work work) {
    MutexLock lock(mutex_);
    if (on_edge) on_edge();
    const IOStatus status = work();
    if (on_edge) on_edge();
    return status;
  }

  const std::string root_, shadow_;
  Mutex mutex_;  // held over each edge; guards all below
  std::vector<Inode> inodes_;
  std::map<std::string, int> now_, durable_;  // path -> inode
};

class ForgetfulFile final : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  ForgetfulFile(ForgetfulFiles& files, std::string path,
                std::unique_ptr<rocksdb::FSWritableFile> file)
      : rocksdb::FSWritableFileOwnerWrapper(std::move(file)),
        files_(files),
        path_(std::move(path)) {}
  IOStatus Sync(const IOOptions& options, IODebugContext* debug) override {
    return files_.Synced(path_, [&] { return target()->Sync(options, debug); });
  }
  IOStatus Fsync(const IOOptions& options, IODebugContext* debug) override {
    return files_.Synced(path_, [&] { return target()->Fsync(options, debug); });
  }

 private:
  ForgetfulFiles& files_;
  const std::string path_;
};

class ForgetfulFolder final : public rocksdb::FSDirectoryWrapper {
 public:
  ForgetfulFolder(ForgetfulFiles& files, std::string path,
                  std::unique_ptr<rocksdb::FSDirectory> folder)
      : rocksdb::FSDirectoryWrapper(std::move(folder)), files_(files), path_(std::move(path)) {}
  IOStatus Fsync(const IOOptions& options, IODebugContext* debug) override {
    return files_.FolderSynced(path_,
                               [&] { return rocksdb::FSDirectoryWrapper::Fsync(options, debug); });
  }
  IOStatus FsyncWithDirOptions(const IOOptions& options, IODebugContext* debug,
                               const rocksdb::DirFsyncOptions& how) override {
    return files_.FolderSynced(path_, [&] {
      return rocksdb::FSDirectoryWrapper::FsyncWithDirOptions(options, debug, how);
    });
  }

 private:
  ForgetfulFiles& files_;
  const std::string path_;
};

IOStatus ForgetfulFiles::NewWritableFile(const std::string& path, const FileOptions& options,
                                         std::unique_ptr<rocksdb::FSWritableFile>* file,
                                         IODebugContext* debug) {
  std::unique_ptr<rocksdb::FSWritableFile> made;
  {
    MutexLock lock(mutex_);
    unlink(path.c_str());  // never truncated: the shadow must keep what was there
    const IOStatus status = target()->NewWritableFile(path, options, &made, debug);
    if (!status.ok()) return status;
    Made(path);
  }
  *file = std::make_unique<ForgetfulFile>(*this, path, std::move(made));
  return IOStatus::OK();
}

IOStatus ForgetfulFiles::ReopenWritableFile(const std::string& path, const FileOptions& options,
                                            std::unique_ptr<rocksdb::FSWritableFile>* file,
                                            IODebugContext* debug) {
  std::unique_ptr<rocksdb::FSWritableFile> opened;
  const IOStatus status = target()->ReopenWritableFile(path, options, &opened, debug);
  if (!status.ok()) return status;
  *file = std::make_unique<ForgetfulFile>(*this, path, std::move(opened));
  return IOStatus::OK();
}

IOStatus ForgetfulFiles::NewDirectory(const std::string& path, const IOOptions& options,
                                      std::unique_ptr<rocksdb::FSDirectory>* folder,
                                      IODebugContext* debug) {
  std::unique_ptr<rocksdb::FSDirectory> opened;
  const IOStatus status = target()->NewDirectory(path, options, &opened, debug);
  if (!status.ok()) return status;
  *folder = std::make_unique<ForgetfulFolder>(*this, path, std::move(opened));
  return IOStatus::OK();
}

// Small ones go through the log, large ones are ingested.
PutItem CutItem(int d) {
  const bool large = d % 5 == 4;
  const SectionSpec spec = large ? HiddenSpec(4096) : SampledSpec();
  return {TestParts(spec, TestDocument(d), large ? 300 : 20, d), TestProvenance(spec)};
}

struct Acknowledged {
  std::set<int> documents;
  std::set<int> objects;
};
struct Cut {
  std::string path;
  Acknowledged acknowledged;
};

class Schedule {
 public:
  Schedule(uint64_t seed, std::string folder) : random_(seed), folder_(std::move(folder)) {
    path_ = JoinPath(folder_, "cache");
  }

  // Three sittings of random puts, cut at every `stride`-th edge or so.
  std::vector<Cut> Run() {
    for (int sitting = 0; sitting < 3; ++sitting) {
      const std::string shadow = JoinPath(folder_, absl::StrCat("shadow", sitting));
      SH_CHECK_OK(MakeFolders(shadow));
      const auto files = std::make_shared<ForgetfulFiles>(path_, shadow);
      const std::unique_ptr<rocksdb::Env> env = rocksdb::NewCompositeEnv(files);
      files->on_edge = [this, &files] { Edge(*files); };
      auto cache =
          *CacheDirectory::Open({.path = path_, .disk_reserve_bytes = 0, .env = env.get()});
      Sit(*cache);
      // Half of the sittings end as a crash would, as far as the next one can see.
      if (random_.NextBelow(2) == 0) SH_CHECK_OK(cache->sections().store().Flush());
      cache.reset();
    }
    return std::move(cuts_);
  }

 private:
  static constexpr int kStride = 9;  // edges between two cuts, on average

  void Sit(CacheDirectory& cache) {
    for (int i = 0; i < 6; ++i) {
      if (random_.NextBelow(6) == 0) {
        const int object = next_++;
        PutObject(cache, object);
        MutexLock lock(mutex_);
        acknowledged_.objects.insert(object);
        continue;
      }
      std::vector<PutItem> group;
      std::vector<int> documents;
      for (uint64_t n = random_.NextBelow(3) + 1; n > 0; --n) documents.push_back(next_++);
      for (const int d : documents) group.push_back(CutItem(d));
      const auto counts = *cache.sections().Put(group);
      for (const PutCounts& count : counts) SH_CHECK(count.already + count.mismatched == 0);
      MutexLock lock(mutex_);
      acknowledged_.documents.insert(documents.begin(), documents.end());
    }
  }

  void Edge(ForgetfulFiles& files) {
    MutexLock lock(mutex_);
    if (edges_.NextBelow(kStride) != 0) return;
    const std::string to = JoinPath(folder_, absl::StrCat("cut", cuts_.size()));
    files.Copy(to, static_cast<Fate>(edges_.NextBelow(3)), edges_);
    cuts_.push_back({to, acknowledged_});
  }

  RandomStream random_;
  RandomStream edges_{77};
  const std::string folder_;
  std::string path_;
  int next_ = 0;
  Mutex mutex_;
  Acknowledged acknowledged_;  // guarded by mutex_, as cuts_
  std::vector<Cut> cuts_;
};

void ExpectWhole(CacheDirectory& cache, const Acknowledged& acknowledged) {
  for (const int d : acknowledged.documents) {
    for (const Part& part : CutItem(d).parts) {
      const auto found = cache.sections().Get({part.key}, kAnyBytes);
      ASSERT_TRUE(found.ok()) << found.status();
      ASSERT_TRUE((*found)[0].has_value()) << "document " << d << " was acknowledged and is gone";
      EXPECT_EQ((*found)[0]->payload, part.payload);
    }
  }
  for (const int i : acknowledged.objects) {
    const auto bytes = cache.objects().Get(absl::StrCat("artefact/", i));
    ASSERT_TRUE(bytes.ok()) << "object " << i << ": " << bytes.status();
    EXPECT_EQ(**bytes, DamageObject(i));
  }
  EXPECT_THAT(VerifyAll(cache), IsEmpty());
  // Nothing twice: as many parts are counted as are indexed.
  uint64_t counted = 0;
  const auto totals = *cache.sections().Totals();
  for (const auto& [spec, total] : totals) counted += total.parts;
  EXPECT_EQ(cache.sections().store().Scan(kCacheIndex, {})->entries.size(), counted);
}

int Seeds() {
  const char* seeds = std::getenv("SH_POWER_CUT_SEEDS");
  return seeds == nullptr ? 2 : std::atoi(seeds);
}

TEST(PowerCutTest, NothingAcknowledgedIsLostAndNothingIsThereTwice) {
  size_t cuts = 0, with_content = 0;
  for (int seed = 1; seed <= Seeds(); ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    const TempFolder folder = *TempFolder::Create();
    Schedule schedule(seed, folder.path());
    const std::vector<Cut> all = schedule.Run();
    for (const Cut& cut : all) {
      SCOPED_TRACE(absl::StrCat(BaseName(cut.path), " with ", cut.acknowledged.documents.size(),
                                " documents"));
      auto cache = CacheDirectory::Open({.path = cut.path, .disk_reserve_bytes = 0});
      ASSERT_TRUE(cache.ok()) << cache.status();
      ExpectWhole(**cache, cut.acknowledged);
      if (testing::Test::HasFailure()) return;
      ++cuts;
      with_content += !cut.acknowledged.documents.empty();
      cache->reset();
      SH_CHECK_OK(RemoveTree(cut.path));
    }
  }
  std::printf("%zu cuts, %zu of them after something was acknowledged\n", cuts, with_content);
  EXPECT_GT(with_content, 10u * Seeds());
}

// The test itself is tested: a cut that also forgets what was synced must be noticed.
TEST(PowerCutTest, ForgettingSyncedBytesIsNoticed) {
  const TempFolder folder = *TempFolder::Create();
  Schedule schedule(/*seed=*/1, folder.path());
  const std::vector<Cut> all = schedule.Run();
  const Cut& last = all.back();
  ASSERT_FALSE(last.acknowledged.documents.empty());
  int noticed = 0;
  for (const std::string& log : DatabaseFiles(last.path, ".log")) CutFile(log, 0), ++noticed;
  for (const std::string& table : DatabaseFiles(last.path, ".sst")) {
    SH_CHECK_OK(RemoveTree(table));
    ++noticed;
  }
  ASSERT_GT(noticed, 0);
  auto cache = CacheDirectory::Open({.path = last.path, .disk_reserve_bytes = 0});
  bool lost = !cache.ok();
  for (const int d : last.acknowledged.documents) {
    if (lost) break;
    const auto found = (*cache)->sections().Get({CutItem(d).parts[0].key}, kAnyBytes);
    lost = !found.ok() || !(*found)[0].has_value();
  }
  EXPECT_TRUE(lost);
}

}  // namespace
}  // namespace stillhouse

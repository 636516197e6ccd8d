// Jobs that leave one cache as a folder and arrive in another.
#include "storage/service/job_export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/service/job_import.h"
#include "tests/common/small_disk.h"
#include "tests/storage/job_fixture.h"

namespace stillhouse {
namespace {

using testing::HasSubstr;

// A cache in memory.
struct Cache {
  std::unique_ptr<KvStore> kv = MakeMemoryKvStore(4);
  std::unique_ptr<TeacherCache> sections = *TeacherCache::Open(*kv, "store");
  std::unique_ptr<ObjectStore> objects = *ObjectStore::Open(*kv, /*writable=*/true);
  std::unique_ptr<JobStore> jobs = MakeLocalJobStore(*sections, *objects);

  void PutObject(const std::string& name, const std::string& bytes) {
    SH_CHECK_OK(jobs->PutObject(name, std::make_shared<const std::string>(bytes)));
  }
  // The test's job, its documents in this order; `seed` of the values.
  void Fill(bool backwards, uint64_t seed = 0) {
    const auto bytes = TestPlanBytes();
    const auto plan = *ParsePlan(bytes);
    if (backwards) PutObject(ArtefactObjectName(TestTeacher(), "influence/other"), "not wanted");
    PutObject(ArtefactObjectName(TestTeacher(), "head"), std::string(1000, 'h'));
    PutObject(PlanObjectName(plan->digest()), *bytes);
    PutObject(JobObjectName("test"), EncodeJobObject(TestJob(plan->digest())));
    for (uint32_t i = 0; i < plan->document_count(); ++i) {
      const uint32_t d = backwards ? plan->document_count() - 1 - i : i;
      SH_CHECK_OK(sections->Put(TestDocumentItems(*plan, d, d + seed)));
    }
  }
};

// All files of a folder, by name.
std::map<std::string, std::string> Contents(const std::string& folder) {
  std::map<std::string, std::string> files;
  const std::vector<std::string> names = *ListFolder(folder);
  for (const std::string& name : names) {
    files[name] = *ReadFile(JoinPath(folder, name));
  }
  return files;
}

class JobExportTest : public testing::Test {
 protected:
  std::string At(const std::string& name) { return JoinPath(folder_.path(), name); }
  // The test's job in files of at most 3,000 bytes, so that there are several.
  std::string Export(Cache& cache, const std::string& name = "export") {
    SH_CHECK_OK(ExportJob(*cache.jobs, "test", At(name), {.file_bytes_max = 3000}));
    return At(name);
  }
  absl::Status Import(const std::string& folder, JobStore& store) {
    SH_ASSIGN_OR_RETURN(const auto from, JobExport::Open(folder));
    return ImportJob(*from, "test", store).status();
  }
  // What opening says of the export after the change; one line, exit code 7.
  std::string Refusal(const std::string& folder) {
    const absl::Status status = JobExport::Open(folder).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_EQ(status.message().find('\n'), absl::string_view::npos);
    return std::string(status.message());
  }

  TempFolder folder_ = *TempFolder::Create();
};

TEST_F(JobExportTest, EqualCapturesGiveTheSameBytes) {
  Cache a, b;
  a.Fill(/*backwards=*/false);
  b.Fill(/*backwards=*/true);
  const auto from_a = Contents(Export(a, "a"));
  EXPECT_EQ(from_a, Contents(Export(b, "b")));
  EXPECT_GT(from_a.size(), 5u);
  for (const auto& [name, bytes] : from_a) {
    if (name.starts_with("sections")) {
      EXPECT_LE(bytes.size(), 3000u);
    }
  }
  struct stat info {};
  ASSERT_EQ(stat(At("a").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0755u);
  EXPECT_EQ(ListFolder(folder_.path())->size(), 2u);
}

TEST_F(JobExportTest, ArrivesWithItsDigestAndLeavesAgainWithItsBytes) {
  Cache from, to;
  from.Fill(false);
  const std::string folder = Export(from);
  const auto opened = *JobExport::Open(folder);
  EXPECT_EQ(opened->manifest().digest, from.jobs->DigestOfJob("test")->digest);
  const ImportReport report = *ImportJob(*opened, "test", *to.jobs);
  EXPECT_EQ(report.stored, 16u);
  EXPECT_EQ(to.jobs->DigestOfJob("test")->digest, from.jobs->DigestOfJob("test")->digest);
  EXPECT_EQ(ImportJob(*opened, "test", *to.jobs)->already, 16u);
  EXPECT_EQ(Contents(folder), Contents(Export(to, "again")));
  SH_CHECK_OK(ImportJob(*opened, "other-name", *to.jobs));
  EXPECT_EQ(to.jobs->DigestOfJob("other-name")->digest, opened->manifest().digest);
  EXPECT_TRUE(absl::IsInvalidArgument(ImportJob(*opened, "../x", *to.jobs).status()));
}

TEST_F(JobExportTest, WhatIsNotWholeIsNotExported) {
  Cache cache;
  cache.Fill(false);
  EXPECT_TRUE(absl::IsNotFound(ExportJob(*cache.jobs, "none", At("x")).status()));
  JobObject wider = TestJob((*ParsePlan(TestPlanBytes()))->digest());
  wider.name = "wider";
  wider.sections.push_back(HiddenSpec(8));
  cache.PutObject(JobObjectName("wider"), EncodeJobObject(wider));
  const absl::Status missing = ExportJob(*cache.jobs, "wider", At("x")).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(missing));
  EXPECT_THAT(missing.message(), HasSubstr("6 of the 22 sections"));
  SH_CHECK_OK(MakeFolders(At("taken")));
  EXPECT_TRUE(absl::IsAlreadyExists(ExportJob(*cache.jobs, "test", At("taken")).status()));
  EXPECT_EQ(ListFolder(folder_.path())->size(), 1u);
}

TEST_F(JobExportTest, AFullDiskLeavesNothing) {
  SmallDisk disk(At("disk"), "size=400k,mode=700");
  if (!disk.mounted()) GTEST_SKIP() << "only root may mount a small disk";
  Cache cache;
  cache.Fill(false);
  const std::string target = JoinPath(disk.path(), "export");
  int refused = 0;
  for (size_t room = 4096;; room += 4096) {
    disk.LeaveRoom(room);
    const absl::Status status =
        ExportJob(*cache.jobs, "test", target, {.file_bytes_max = 3000}).status();
    if (status.ok()) break;
    ++refused;
    ASSERT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    const std::vector<std::string> names = *ListFolder(disk.path());
    for (const std::string& name : names) ASSERT_EQ(name, "filler");
  }
  EXPECT_GT(refused, 3);
  SH_CHECK_OK(JobExport::Open(target));
}

// Fails for good from the n-th call that writes, as a process that is killed there.
class DyingStore final : public JobStore {
 public:
  DyingStore(JobStore& store, int writes) : store_(store), writes_(writes) {}
  absl::StatusOr<std::vector<ObjectInfo>> List(absl::string_view prefix, absl::string_view after,
                                               int limit) override {
    return store_.List(prefix, after, limit);
  }
  absl::StatusOr<std::shared_ptr<const std::string>> GetObject(const std::string& name) override {
    return store_.GetObject(name);
  }
  absl::StatusOr<std::vector<std::optional<Part>>> GetParts(
      const std::vector<PartKey>& keys) override {
    return store_.GetParts(keys);
  }
  absl::StatusOr<JobUsage> UsageOfJob(const std::string& job) override {
    return store_.UsageOfJob(job);
  }
  absl::StatusOr<JobDigest> DigestOfJob(const std::string& job) override {
    return store_.DigestOfJob(job);
  }
  absl::Status PutObject(const std::string& name,
                         std::shared_ptr<const std::string> bytes) override {
    if (writes_-- <= 0) return absl::CancelledError("killed");
    return store_.PutObject(name, bytes);
  }
  // Half of a group may be stored before the end.
  absl::StatusOr<std::vector<PutCounts>> Put(std::vector<PutItem> items) override {
    if (writes_-- > 0) return store_.Put(std::move(items));
    items.resize(items.size() / 2);
    SH_CHECK_OK(store_.Put(std::move(items)));
    return absl::CancelledError("killed");
  }

 private:
  JobStore& store_;
  int writes_;
};

TEST_F(JobExportTest, AnImportThatWasKilledIsRunAgain) {
  Cache from;
  from.Fill(false);
  const std::string folder = Export(from);
  int kills = 0;
  for (int writes = 0;; ++writes) {
    Cache to;
    DyingStore dying(*to.jobs, writes);
    if (Import(folder, dying).ok()) break;
    ++kills;
    EXPECT_TRUE(absl::IsNotFound(to.jobs->GetObject("job/test").status())) << writes;
    SH_CHECK_OK(Import(folder, *to.jobs));
    EXPECT_EQ(to.jobs->DigestOfJob("test")->digest, from.jobs->DigestOfJob("test")->digest);
  }
  EXPECT_EQ(kills, 4);  // plan, artefact, parts, job
}

TEST_F(JobExportTest, WhatTheCacheHoldsOtherwiseIsNamed) {
  Cache from, to;
  from.Fill(false);
  const std::string folder = Export(from);
  const auto plan = *ParsePlan(TestPlanBytes());
  SH_CHECK_OK(to.sections->Put(TestDocumentItems(*plan, 3, /*seed=*/99)));
  const absl::Status other = Import(folder, *to.jobs);
  EXPECT_TRUE(absl::IsFailedPrecondition(other)) << other;
  EXPECT_THAT(other.message(), HasSubstr("other values for 2 parts"));
  EXPECT_THAT(other.message(), HasSubstr("stats of document 3 from row 0"));
  EXPECT_TRUE(absl::IsNotFound(to.jobs->GetObject("job/test").status()));

  Cache artefact;
  artefact.PutObject(ArtefactObjectName(TestTeacher(), "head"), "another");
  const absl::Status head = Import(folder, *artefact.jobs);
  EXPECT_TRUE(absl::IsAlreadyExists(head));
  EXPECT_THAT(head.message(), HasSubstr("another head of this teacher"));

  Cache job;
  JobObject another = TestJob(Sha256Of("plan"));
  job.PutObject(JobObjectName("test"), EncodeJobObject(another));
  const absl::Status taken = Import(folder, *job.jobs);
  EXPECT_TRUE(absl::IsAlreadyExists(taken));
  EXPECT_THAT(taken.message(), HasSubstr("--as"));
  EXPECT_TRUE(job.jobs->List("sha256/", "", 10)->empty());
}

TEST_F(JobExportTest, EveryFlippedByteIsFoundBeforeAnythingIsStored) {
  Cache from;
  from.Fill(false);
  const std::string folder = Export(from);
  for (const auto& [name, bytes] : Contents(folder)) {
    const std::string path = JoinPath(folder, name);
    for (size_t i = 0; i < bytes.size(); i += 1 + bytes.size() / 7) {
      std::string flipped = bytes;
      flipped[i] ^= 1;
      SH_CHECK_OK(WriteFileAtomically(path, flipped));
      Refusal(folder);
    }
    SH_CHECK_OK(WriteFileAtomically(path, absl::string_view(bytes).substr(0, bytes.size() / 2)));
    Refusal(folder);
    SH_CHECK_OK(RemoveTree(path));
    EXPECT_THAT(Refusal(folder), HasSubstr(name + ": it is missing"));
    SH_CHECK_OK(WriteFileAtomically(path, bytes));
  }
  SH_CHECK_OK(JobExport::Open(folder));
}

TEST_F(JobExportTest, LinksDevicesAndFoldersInAFilesPlaceAreRefused) {
  Cache from;
  from.Fill(false);
  const std::string folder = Export(from);
  for (const char* name :
       {"plan.bin", "artefact-000.bin", "sections-000000.bin", "MANIFEST.json"}) {
    const std::string path = JoinPath(folder, name), moved = At("moved");
    ASSERT_EQ(rename(path.c_str(), moved.c_str()), 0);
    ASSERT_EQ(symlink(moved.c_str(), path.c_str()), 0);
    EXPECT_THAT(Refusal(folder), HasSubstr("a link or device"));
    ASSERT_EQ(unlink(path.c_str()), 0);
    ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
    EXPECT_THAT(Refusal(folder), HasSubstr("a link or device"));
    ASSERT_EQ(unlink(path.c_str()), 0);
    ASSERT_EQ(mkdir(path.c_str(), 0700), 0);
    EXPECT_THAT(Refusal(folder), HasSubstr("a link or device"));
    ASSERT_EQ(rmdir(path.c_str()), 0);
    ASSERT_EQ(rename(moved.c_str(), path.c_str()), 0);
  }
  EXPECT_TRUE(absl::IsNotFound(JobExport::Open(At("none")).status()));
}

// Somebody who means harm makes sizes and hashes right.
class ForgedExportTest : public JobExportTest {
 protected:
  void SetUp() override {
    cache_.Fill(false);
    folder_path_ = Export(cache_);
    manifest_ = (*JobExport::Open(folder_path_))->manifest();
  }
  void WriteManifest() {
    SH_CHECK_OK(WriteFileAtomically(JoinPath(folder_path_, kExportManifestName),
                                    EncodeExportManifest(manifest_)));
  }
  // Every section file made anew, all parts in one, in the order given.
  void WriteParts(const std::vector<std::pair<WantedSection, Part>>& parts) {
    std::string file;
    const std::vector<std::string> specs = ExportSpecs(manifest_.job);
    ExportFileWriter writer(specs, [&file](absl::string_view bytes) {
      file.append(bytes.data(), bytes.size());
      return absl::OkStatus();
    });
    for (const auto& [section, part] : parts) {
      const auto spec = std::find(specs.begin(), specs.end(), section.spec.Canonical());
      SH_CHECK_OK(writer.Add(part, static_cast<uint32_t>(spec - specs.begin())));
    }
    SH_CHECK_OK(writer.Finish());
    SH_CHECK_OK(WriteFileAtomically(JoinPath(folder_path_, ExportSectionsFile(0)), file));
    manifest_.files = {{file.size(), Sha256Of(file)}};
    WriteManifest();
  }
  std::vector<std::pair<WantedSection, Part>> Parts() {
    std::vector<std::pair<WantedSection, Part>> parts;
    const auto from = *JobExport::Open(folder_path_);
    SH_CHECK_OK(from->ForEachPart([&](const WantedSection& section, Part part) {
      parts.emplace_back(section, std::move(part));
      return absl::OkStatus();
    }));
    return parts;
  }

  Cache cache_;
  std::string folder_path_;
  ExportManifest manifest_;
};

TEST_F(ForgedExportTest, PartsMustBeThoseOfTheJob) {
  const auto parts = Parts();
  WriteParts(parts);
  SH_CHECK_OK(JobExport::Open(folder_path_));  // otherwise divided into files, but the same

  auto swapped = parts;
  std::swap(swapped[0], swapped[2]);
  WriteParts(swapped);
  EXPECT_THAT(Refusal(folder_path_), HasSubstr("stats of document 0 is not where it should be"));

  auto renamed = parts;  // the values of one document under the key of another
  std::swap(renamed[0].second.payload, renamed[2].second.payload);
  WriteParts(renamed);
  Refusal(folder_path_);

  auto fewer = parts;
  fewer.pop_back();
  WriteParts(fewer);
  EXPECT_THAT(Refusal(folder_path_), HasSubstr("is not where it should be"));

  auto more = parts;
  more.push_back(parts[0]);
  more.back().second.key.section = Sha256Of("foreign");
  WriteParts(more);
  EXPECT_THAT(Refusal(folder_path_), HasSubstr("more than the job wants"));

  auto nonsense = parts;
  nonsense[0].second.payload = std::string("\x01 nonsense");
  WriteParts(nonsense);
  EXPECT_THAT(Refusal(folder_path_), HasSubstr("stats of document 0: malformed payload"));
}

TEST_F(ForgedExportTest, ManifestAndFilesMustAgree) {
  const ExportManifest good = manifest_;
  const auto refused = [&](const std::function<void(ExportManifest&)>& change) {
    manifest_ = good;
    change(manifest_);
    WriteManifest();
    return Refusal(folder_path_);
  };
  EXPECT_THAT(refused([](auto& m) { m.job.teacher = Sha256Of("x"); }), HasSubstr("not where it"));
  EXPECT_THAT(refused([](auto& m) { m.job.plan = Sha256Of("x"); }), HasSubstr("not the plan"));
  EXPECT_THAT(refused([](auto& m) { m.digest = Sha256Of("x"); }), HasSubstr("have the digest"));
  EXPECT_THAT(refused([](auto& m) { ++m.rows; }), HasSubstr("its manifest states"));
  EXPECT_THAT(refused([](auto& m) { ++m.documents; }), HasSubstr("8 documents"));
  EXPECT_THAT(refused([](auto& m) { m.files.pop_back(); }), HasSubstr("not where it should be"));
  EXPECT_THAT(refused([](auto& m) { m.files[0].bytes = kExportFileBytesMax; }),
              HasSubstr("the manifest states"));
  EXPECT_THAT(refused([](auto& m) { m.files.resize(1000, m.files[0]); }), HasSubstr("missing"));
  EXPECT_THAT(refused([](auto& m) { m.job.sections = {SectionSpec{}}; }),
              HasSubstr("other sections than the job"));
}

}  // namespace
}  // namespace stillhouse

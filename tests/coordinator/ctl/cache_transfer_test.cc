// coordinatorctl cache export and import, as a user runs them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>

#include <nlohmann/json.hpp>

#include "common/status.h"
#include "tests/coordinator/ctl/cache_verbs_fixture.h"

namespace stillhouse {
namespace {

using nlohmann::json;
using testing::HasSubstr;

class CacheTransferTest : public CacheVerbsFixture {
 protected:
  std::string At(const std::string& name) { return JoinPath(folder_.path(), name); }
  std::string Manifest(const std::string& folder) {
    return *ReadFile(JoinPath(At(folder), "MANIFEST.json"));
  }
};

TEST_F(CacheTransferTest, FromOneDirectoryToAnother) {
  const Result exported = Run(Dir("export test --to " + At("export")));
  EXPECT_EQ(exported.code, 0) << exported.errors;
  EXPECT_THAT(exported.out, HasSubstr("8 documents, 16 sections"));
  EXPECT_THAT(exported.out, HasSubstr(digest_));
  EXPECT_EQ(Run(Dir("export test --to " + At("export"))).code, kExitConflict);
  EXPECT_EQ(Run(Dir("export other --to " + At("other"))).code, kExitNotFound);

  const std::string import = "import " + At("export") + " --dir " + At("second");
  const json report = json::parse(Run(import + " -o json").out);
  EXPECT_EQ(report["parts_stored"], 16);
  EXPECT_EQ(report["digest"], digest_);
  EXPECT_EQ(Run("digest test --dir " + At("second")).out, digest_ + "\n");
  EXPECT_THAT(Run(import).out, HasSubstr("0 parts stored, 16 were there"));
  EXPECT_EQ(Run(import + " --as copy").code, 0);
  EXPECT_EQ(Run("digest copy --dir " + At("second")).out, digest_ + "\n");
  EXPECT_EQ(Run("verify --dir " + At("second")).code, 0);
}

TEST_F(CacheTransferTest, ThroughServersWithTheSameBytes) {
  ASSERT_EQ(Run(Dir("export test --to " + At("direct"))).code, 0);
  const std::string address = Serve(directory_, "s");
  EXPECT_EQ(Run("export test --to " + At("served") + " --server " + address).code, 0);
  EXPECT_EQ(Manifest("direct"), Manifest("served"));

  const std::string second = Serve(At("second"), "t");
  const Result imported = Run("import " + At("served") + " --server " + second);
  EXPECT_EQ(imported.code, 0) << imported.errors;
  EXPECT_EQ(Run("digest test --server " + second).out, digest_ + "\n");
  EXPECT_EQ(Run("import " + At("served") + " --dir " + At("second")).code, kExitConflict);
  EXPECT_EQ(Run("export test --to " + At("third") + " --server " + second).code, 0);
  EXPECT_EQ(Manifest("direct"), Manifest("third"));
}

TEST_F(CacheTransferTest, DamageIsOneLineAndStoresNothing) {
  ASSERT_EQ(Run(Dir("export test --to " + At("export"))).code, 0);
  const std::string path = JoinPath(At("export"), "sections-000000.bin");
  std::string bytes = *ReadFile(path);
  bytes[bytes.size() / 2] ^= 1;
  SH_CHECK_OK(WriteFileAtomically(path, bytes));
  const Result damaged = Run("import " + At("export") + " --dir " + At("second"));
  EXPECT_EQ(damaged.code, kExitCorrupt);
  EXPECT_THAT(damaged.errors, HasSubstr("sections-000000.bin: its SHA-256"));
  EXPECT_EQ(std::count(damaged.errors.begin(), damaged.errors.end(), '\n'), 1) << damaged.errors;
  EXPECT_FALSE(PathExists(At("second")));
  EXPECT_EQ(Run("import " + At("none") + " --dir " + At("second")).code, kExitNotFound);
  EXPECT_EQ(Run("import " + directory_ + " --dir " + At("second")).code, kExitCorrupt);
}

}  // namespace
}  // namespace stillhouse

// The transitions are numbered in coordinator/lease_table.h.
#include "coordinator/lease_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coordinator/limits.h"

namespace stillhouse {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

Lease MakeLease(uint64_t epoch, const std::string& worker, absl::Duration now) {
  Lease lease;
  lease.epoch = epoch;
  lease.job = "job/j";
  lease.worker = {worker, 1};
  lease.granted_at = lease.progressed_at = now;
  lease.deadline = now + kLeaseLength;
  return lease;
}

TEST(LeaseTest, T1_AddedIsFoundAndAnEpochIsNeverUsedTwice) {
  LeaseTable leases;
  leases.Add(MakeLease(1, "a", absl::ZeroDuration()));
  leases.Add(MakeLease(2, "a", absl::ZeroDuration()));
  EXPECT_THAT(leases.HeldBy("a"), ElementsAre(1, 2));
  EXPECT_EQ(leases.Find(3), nullptr);
  EXPECT_DEATH(leases.Add(MakeLease(2, "b", absl::ZeroDuration())), "used twice");
}

TEST(LeaseTest, T2_HeartbeatsRenew) {
  LeaseTable leases;
  leases.Add(MakeLease(1, "a", absl::ZeroDuration()));
  EXPECT_TRUE(leases.Renew(1, 5, 0, kStallMin, absl::Seconds(10)));
  EXPECT_THAT(leases.ExpiredAt(absl::Seconds(24)), IsEmpty());
  EXPECT_THAT(leases.ExpiredAt(absl::Seconds(25)), ElementsAre(1));
  EXPECT_TRUE(leases.Renew(1, 3, 0, kStallMin, absl::Seconds(11)));
  EXPECT_EQ(leases.Find(1)->rows_done, 5) << "an older report does not take progress back";
}

TEST(LeaseTest, T3_DeadlinesPass) {
  LeaseTable leases;
  leases.Add(MakeLease(1, "a", absl::ZeroDuration()));
  leases.Add(MakeLease(2, "b", absl::Seconds(5)));
  EXPECT_THAT(leases.ExpiredAt(kLeaseLength - absl::Milliseconds(1)), IsEmpty());
  EXPECT_THAT(leases.ExpiredAt(kLeaseLength), ElementsAre(1));
  EXPECT_THAT(leases.ExpiredAt(absl::Seconds(20)), ElementsAre(1, 2));
}

TEST(LeaseTest, T4_NoProgressIsRefused) {
  LeaseTable leases;
  leases.Add(MakeLease(1, "a", absl::ZeroDuration()));
  EXPECT_TRUE(leases.Renew(1, 0, 0, kStallMin, kStallMin));
  EXPECT_FALSE(leases.Renew(1, 0, 0, kStallMin, kStallMin + absl::Milliseconds(1)));
  EXPECT_TRUE(leases.Renew(1, 1, 0, kStallMin, kStallMin + absl::Milliseconds(1)));
}

TEST(LeaseTest, T2_ComputingWithoutStoringIsProgressToo) {
  LeaseTable leases;
  leases.Add(MakeLease(1, "a", absl::ZeroDuration()));
  EXPECT_TRUE(leases.Renew(1, 0, 1, kStallMin, kStallMin));
  EXPECT_TRUE(leases.Renew(1, 0, 1, kStallMin, 2 * kStallMin));
  EXPECT_FALSE(leases.Renew(1, 0, 1, kStallMin, 2 * kStallMin + absl::Milliseconds(1)));
  EXPECT_TRUE(leases.Renew(1, 0, 2, kStallMin, 2 * kStallMin + absl::Milliseconds(1)));
}

TEST(LeaseTest, T5_RemovedIsGone) {
  LeaseTable leases;
  leases.Add(MakeLease(1, "a", absl::ZeroDuration()));
  EXPECT_EQ(leases.Remove(1).epoch, 1);
  EXPECT_EQ(leases.size(), 0);
  EXPECT_THAT(leases.HeldBy("a"), IsEmpty());
  EXPECT_THAT(leases.ExpiredAt(absl::InfiniteDuration()), IsEmpty());
}

TEST(LeaseTest, AGapMovesEveryDeadline) {
  LeaseTable leases;
  leases.Add(MakeLease(1, "a", absl::ZeroDuration()));
  leases.AddGap(absl::Seconds(100));
  EXPECT_THAT(leases.ExpiredAt(absl::Seconds(114)), IsEmpty());
  EXPECT_THAT(leases.ExpiredAt(absl::Seconds(115)), ElementsAre(1));
  EXPECT_TRUE(leases.Renew(1, 0, 0, kStallMin, absl::Seconds(130))) << "nor is it a stall";
}

}  // namespace
}  // namespace stillhouse

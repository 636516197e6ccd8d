#include "common/shared_bytes.h"

#include <gtest/gtest.h>

namespace stillhouse {
namespace {

TEST(SharedBytesTest, LiveAsLongAsAnyCopy) {
  auto owner = std::make_shared<const std::string>("0123456789");
  const std::weak_ptr<const std::string> alive = owner;
  SharedBytes middle(absl::string_view(*owner).substr(2, 5), owner);
  owner.reset();
  const SharedBytes copy = middle;
  EXPECT_EQ(copy.data(), middle.data()) << "copies share";
  middle = {};
  EXPECT_TRUE(middle.empty());
  EXPECT_EQ(copy.view(), "23456");
  EXPECT_FALSE(alive.expired());
}

TEST(SharedBytesTest, TakeOverAString) {
  std::string bytes(1000, 'x');
  const char* const data = bytes.data();
  const SharedBytes shared = std::move(bytes);
  EXPECT_EQ(shared.data(), data) << "it was copied";
  EXPECT_EQ(shared, SharedBytes(std::string(1000, 'x')));
  EXPECT_FALSE(shared == SharedBytes(std::string(999, 'x')));
}

}  // namespace
}  // namespace stillhouse

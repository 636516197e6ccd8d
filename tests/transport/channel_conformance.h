// What every Channel promises (transport/channel.h), as one suite over its implementations.
//
// Use: INSTANTIATE_TEST_SUITE_P(Name, ChannelConformanceTest, testing::Values(factory)).
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "transport/channel.h"

namespace stillhouse {

// Where channels live: an executor and one server address.
class ChannelWorld {
 public:
  virtual ~ChannelWorld() = default;
  virtual void Do(std::function<void()> task) = 0;            // on the executor; returns when done
  virtual bool WaitFor(std::function<bool()> condition) = 0;  // false if it never came true
  virtual absl::StatusOr<std::unique_ptr<ServerChannel>> MakeServer() = 0;
  virtual absl::StatusOr<std::unique_ptr<ClientChannel>> MakeClient() = 0;
};
using ChannelWorldFactory = std::function<std::unique_ptr<ChannelWorld>()>;

// A client with what it received, every message as its frames' bytes.
struct TestClient {
  std::unique_ptr<ClientChannel> channel;
  std::vector<std::vector<std::string>> received;
};

class ChannelConformanceTest : public testing::TestWithParam<ChannelWorldFactory> {
 protected:
  void SetUp() override { world_ = GetParam()(); }
  void TearDown() override;

  void StartServer(bool echo);
  void StopServer();
  std::shared_ptr<TestClient> AddClient(bool reads = true);
  void DropClient(const std::shared_ptr<TestClient>& client);
  void StartReading(TestClient& client);
  absl::Status Send(TestClient& client, std::vector<std::string> frames);
  absl::Status SendFromServer(const std::string& connection, std::vector<std::string> frames);
  size_t ServerCount();
  bool WaitForServerCount(size_t count);
  bool WaitForClientCount(TestClient& client, size_t count);

  std::unique_ptr<ChannelWorld> world_;
  std::unique_ptr<ServerChannel> server_;
  std::vector<std::vector<std::string>> at_server_;  // messages, in order of arrival
  std::vector<Peer> peers_;                          // of at_server_
  std::vector<std::shared_ptr<TestClient>> clients_;
};

}  // namespace stillhouse

#include "transport/zmq_channel.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/blocking.h"
#include "common/file.h"
#include "common/status.h"
#include "tests/transport/channel_conformance.h"
#include "transport/ipc_address.h"

namespace stillhouse {
namespace {

// How long a condition may take before a test calls it never. Only failing tests wait that long.
constexpr absl::Duration kNever = absl::Seconds(60);

class ZmqWorld final : public ChannelWorld {
 public:
  ZmqWorld() : folder_(*TempFolder::Create()), thread_([this] { loop_.Run(); }) {}
  ~ZmqWorld() override {
    loop_.Stop();
    thread_.join();
  }
  void Do(std::function<void()> task) override {
    SH_CHECK_OK(CallAndWait<bool>(loop_, [&task](auto done) {
      task();
      done(true);
    }));
  }
  bool WaitFor(std::function<bool()> condition) override {
    const absl::Duration end = loop_.clock().Now() + kNever;
    return *CallAndWait<bool>(
        loop_, [this, &condition, end](auto done) { Poll(condition, end, std::move(done)); });
  }
  absl::StatusOr<std::unique_ptr<ServerChannel>> MakeServer() override {
    return MakeZmqServerChannel(loop_, IpcAddress(path()), options_);
  }
  absl::StatusOr<std::unique_ptr<ClientChannel>> MakeClient() override {
    return MakeZmqClientChannel(loop_, IpcAddress(path()));
  }
  std::string path() const { return folder_.path() + "/socket"; }

  ZmqServerOptions options_;

 private:
  using Done = absl::AnyInvocable<void(absl::StatusOr<bool>)>;
  void Poll(std::function<bool()>& condition, absl::Duration end, Done done) {
    if (condition()) return done(true);
    if (loop_.clock().Now() > end) return done(false);
    loop_.PostAfter(absl::Milliseconds(1),
                    [this, &condition, end, done = std::move(done)]() mutable {
                      Poll(condition, end, std::move(done));
                    });
  }

  TempFolder folder_;
  EventLoop loop_;
  std::thread thread_;
};

INSTANTIATE_TEST_SUITE_P(Zmq, ChannelConformanceTest,
                         testing::Values([] { return std::make_unique<ZmqWorld>(); }));

// A socket that speaks no ZeroMQ of its own.
class RawPeer {
 public:
  explicit RawPeer(const std::string& path) : fd_(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un to{};
    to.sun_family = AF_UNIX;
    memcpy(to.sun_path, path.c_str(), path.size() + 1);
    connected_ = connect(fd_, reinterpret_cast<sockaddr*>(&to), sizeof(to)) == 0;
    const timeval limit{60, 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  }
  ~RawPeer() { close(fd_); }
  bool connected() const { return connected_; }
  void Write(const std::string& bytes) {
    // The server may have hung up already, which is what it should do.
    [[maybe_unused]] const ssize_t sent = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }
  bool ReadByte(unsigned char* byte) { return recv(fd_, byte, 1, 0) == 1; }
  // A message sent before the server's own READY has come is an error in ZMTP.
  void ShakeHands();
  // True once the server has hung up; false if it still has not when the time is up.
  bool ReadToEnd() {
    char bytes[4096];
    for (;;) {
      const ssize_t got = recv(fd_, bytes, sizeof(bytes), 0);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return got == 0 || errno == ECONNRESET;
    }
  }

 private:
  int fd_;
  bool connected_ = false;
};

// ZMTP 3.0 (rfc.zeromq.org/spec/23): greeting of the NULL mechanism, then READY of a DEALER.
std::string ZmtpHandshake() {
  std::string bytes = std::string("\xff\0\0\0\0\0\0\0\1\x7f\x03\0", 12) + "NULL";
  bytes.resize(64, '\0');
  std::string ready =
      std::string("\x05READY") + "\x0bSocket-Type" + std::string("\0\0\0\6", 4) + "DEALER";
  bytes += '\x04';
  bytes += static_cast<char>(ready.size());
  return bytes + ready;
}

void RawPeer::ShakeHands() {
  Write(ZmtpHandshake());
  unsigned char byte = 0, flags = 0, size = 0;
  for (int i = 0; i < 64; ++i) ASSERT_TRUE(ReadByte(&byte));
  ASSERT_TRUE(ReadByte(&flags) && ReadByte(&size));
  ASSERT_EQ(flags, 4);
  for (int i = 0; i < size; ++i) ASSERT_TRUE(ReadByte(&byte));
}

class ZmqChannelTest : public testing::Test {
 protected:
  void StartServer() {
    world_.Do([&] {
      auto server = world_.MakeServer();
      ASSERT_TRUE(server.ok()) << server.status();
      server_ = *std::move(server);
      server_->SetReceiver([this](const Peer& peer, Frames frames) {
        ++seen_;
        EXPECT_EQ(peer.user, absl::StrCat("uid/", geteuid()));
        server_->Send(peer.connection, std::move(frames)).IgnoreError();
      });
    });
  }
  void ExpectServes(const std::string& question) {
    std::unique_ptr<ClientChannel> client;
    bool answered = false;
    world_.Do([&] {
      client = *world_.MakeClient();
      client->SetReceiver([&](Frames frames) { answered = frames[0].view() == question; });
      EXPECT_TRUE(client->Send({question}).ok());
    });
    EXPECT_TRUE(world_.WaitFor([&] { return answered; }));
    world_.Do([&] { client.reset(); });
  }
  void TearDown() override {
    world_.Do([&] { server_.reset(); });
  }

  ZmqWorld world_;
  std::unique_ptr<ServerChannel> server_;
  int seen_ = 0;
};

TEST_F(ZmqChannelTest, SocketIsPrivateAndRemovedWithTheServer) {
  StartServer();
  struct stat info {};
  ASSERT_EQ(stat(world_.path().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  world_.Do([&] { server_.reset(); });
  EXPECT_FALSE(PathExists(world_.path()));
}

TEST_F(ZmqChannelTest, FolderThatOthersCanEnterIsRefusedByBothEnds) {
  ASSERT_EQ(chmod(FolderOf(world_.path()).c_str(), 0755), 0);
  world_.Do([&] {
    EXPECT_TRUE(absl::IsPermissionDenied(world_.MakeServer().status()));
    EXPECT_TRUE(absl::IsPermissionDenied(world_.MakeClient().status()));
  });
}

TEST_F(ZmqChannelTest, PeerOfAnotherUserIsTurnedAway) {
  StartServer();
  unsigned char byte = 0;
  EXPECT_TRUE(RawPeer(world_.path()).ReadByte(&byte));  // the greeting
  world_.Do([&] { server_.reset(); });
  world_.options_.uid = geteuid() + 1;
  world_.Do([&] { server_ = *world_.MakeServer(); });
  RawPeer refused(world_.path());
  EXPECT_TRUE(refused.connected());
  EXPECT_FALSE(refused.ReadByte(&byte));
}

TEST_F(ZmqChannelTest, StaleSocketFileOfAKilledServerIsReplaced) {
  ASSERT_TRUE(WriteFileAtomically(world_.path(), "").ok());
  StartServer();
  ExpectServes("hello");
}

TEST_F(ZmqChannelTest, GarbageOnTheSocketHurtsNobody) {
  StartServer();
  uint32_t state = 12345;
  for (int round = 0; round < 40; ++round) {
    std::string bytes = round % 4 == 1 ? ZmtpHandshake() : "";
    for (int i = 0; i < 1 + round * 50; ++i) {
      state = state * 1664525u + 1013904223u;
      bytes += static_cast<char>(state >> 24);
    }
    RawPeer peer(world_.path());
    if (round % 4 == 3) peer.ShakeHands();
    peer.Write(bytes);
  }
  RawPeer silent(world_.path());  // never greets at all
  ExpectServes("after the garbage");
}

TEST_F(ZmqChannelTest, FrameOverTheLimitIsRefusedBeforeItIsRead) {
  StartServer();
  RawPeer peer(world_.path());
  // One long frame that claims a terabyte.
  peer.ShakeHands();
  peer.Write(std::string("\x02\0\0\x01\0\0\0\0\0", 9) + "and some bytes");
  EXPECT_TRUE(peer.ReadToEnd());
  ExpectServes("after the oversized frame");
}

TEST_F(ZmqChannelTest, AnEmptyFrameIsAMessage) {
  StartServer();
  RawPeer peer(world_.path());
  peer.ShakeHands();
  peer.Write(std::string("\0\0", 2));  // one empty frame, the last of its message
  EXPECT_TRUE(world_.WaitFor([&] { return seen_ == 1; }));
}

TEST_F(ZmqChannelTest, ManyFramesThatTogetherBreakTheLimitAreDropped) {
  StartServer();
  RawPeer peer(world_.path());
  peer.ShakeHands();
  std::string bytes;
  for (int i = 0; i < kFramesMax + 10; ++i) bytes += std::string("\1\1x", 3);  // more to come
  bytes += std::string("\0\1x", 3);
  bytes += std::string("\0\4kept", 6);  // the next message
  peer.Write(bytes);
  EXPECT_TRUE(world_.WaitFor([&] { return seen_ > 0; }));
  EXPECT_EQ(seen_, 1);
}

}  // namespace
}  // namespace stillhouse

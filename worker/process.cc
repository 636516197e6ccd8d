#include "worker/process.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "common/file.h"
#include "common/log.h"
#include "common/status.h"
#include "transport/zmq_channel.h"

namespace stillhouse {
namespace {

constexpr uint64_t kFileBytesMax = 64 << 10;
constexpr absl::Duration kFilePoll = absl::Milliseconds(50);  // while it is waited for

sigset_t HandledSignals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGUSR2}) sigaddset(&set, signal);
  return set;
}

uint64_t RandomIncarnation() {
  uint64_t value = 0;
  while (value == 0) {
    const ssize_t got = getrandom(&value, sizeof(value), 0);
    SH_CHECK(got == sizeof(value) || errno == EINTR, "getrandom failed, errno ", errno);
  }
  return value;
}

absl::Status CheckOwner(const std::string& path) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) return ErrnoStatus("looking at", path);
  if (info.st_uid == geteuid() && (info.st_mode & (S_IWGRP | S_IWOTH)) == 0) {
    return absl::OkStatus();
  }
  return absl::PermissionDeniedError(
      absl::StrCat(path, ": it must belong to this user and be writable by nobody else"));
}

}  // namespace

absl::StatusOr<CoordinatorFile> ReadCoordinatorFile(const std::string& path) {
  SH_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kFileBytesMax));
  SH_RETURN_IF_ERROR(CheckOwner(path));
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  CoordinatorFile file;
  const auto has = [&](const char* key, bool (nlohmann::json::*is)() const noexcept) {
    return json.is_object() && json.contains(key) && (json[key].*is)();
  };
  if (!has("address", &nlohmann::json::is_string) || !has("cache", &nlohmann::json::is_string) ||
      !has("incarnation", &nlohmann::json::is_number_unsigned) ||
      !has("pid", &nlohmann::json::is_number_unsigned)) {
    return absl::DataLossError(
        absl::StrCat(path, ": not a coordinator's file (address, incarnation, pid and cache)"));
  }
  file.address = json["address"].get<std::string>();
  file.cache = json["cache"].get<std::string>();
  file.incarnation = json["incarnation"].get<uint64_t>();
  file.pid = json["pid"].get<int64_t>();
  return file;
}

// A client channel whose other end may move. Loop thread only, or while the loop does not run.
class WorkerProcess::Connection final : public ClientChannel {
 public:
  explicit Connection(EventLoop& loop) : loop_(loop), rpc_(MakeRpcClient(*this, loop)) {}

  absl::Status ConnectTo(const std::string& address) {
    if (address == address_ && channel_ != nullptr) return absl::OkStatus();
    SH_ASSIGN_OR_RETURN_AT(std::unique_ptr<ClientChannel> channel,
                           MakeZmqClientChannel(loop_, address),
                           absl::StrCat("connecting to ", address));
    channel->SetReceiver([this](Frames frames) {
      if (receiver_) receiver_(std::move(frames));
    });
    channel->SetConnected([this] {
      if (connected_) connected_();
    });
    channel_ = std::move(channel);
    ++channels_made_;
    address_ = address;
    return absl::OkStatus();
  }

  void SetReceiver(Receiver receiver) override { receiver_ = std::move(receiver); }
  absl::Status Send(Frames frames) override {
    SH_CHECK(channel_ != nullptr, "sent before connected");
    return channel_->Send(std::move(frames));
  }
  uint64_t connection() const override {
    const uint64_t number = channel_ == nullptr ? 0 : channel_->connection();
    return number == 0 ? 0 : (channels_made_ << 32) + number;
  }
  void SetConnected(absl::AnyInvocable<void()> connected) override {
    connected_ = std::move(connected);
  }
  RpcClient& rpc() { return *rpc_; }

 private:
  EventLoop& loop_;
  std::string address_;
  Receiver receiver_;
  absl::AnyInvocable<void()> connected_;
  std::unique_ptr<ClientChannel> channel_;
  uint64_t channels_made_ = 0;
  std::unique_ptr<RpcClient> rpc_;
};

class WorkerProcess::Signals {
 public:
  Signals(EventLoop& loop, OnSignal on_signal) : loop_(loop), on_signal_(std::move(on_signal)) {
    const sigset_t set = HandledSignals();
    SH_CHECK(pthread_sigmask(SIG_BLOCK, &set, nullptr) == 0, "pthread_sigmask");
    fd_ = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    SH_CHECK(fd_ >= 0, "signalfd failed, errno ", errno);
    loop_.WatchFd(fd_, [this] { Read(); });
  }
  ~Signals() {
    loop_.UnwatchFd(fd_);
    close(fd_);
  }

  // Waits, for as long as the loop does not run yet.
  bool CameWithin(absl::Duration time) const {
    pollfd readable = {fd_, POLLIN, 0};
    return poll(&readable, 1, static_cast<int>(absl::ToInt64Milliseconds(time))) > 0;
  }

 private:
  void Read() {
    signalfd_siginfo info;
    while (read(fd_, &info, sizeof(info)) == static_cast<ssize_t>(sizeof(info))) {
      on_signal_(static_cast<int>(info.ssi_signo), ++count_);
    }
  }

  EventLoop& loop_;
  OnSignal on_signal_;
  int fd_ = -1;
  int count_ = 0;
};

WorkerProcess::WorkerProcess(const Options& options)
    : options_(options), incarnation_(RandomIncarnation()) {
  char name[256] = {};
  host_ = gethostname(name, sizeof(name) - 1) == 0 ? name : "unknown";
}

absl::StatusOr<std::unique_ptr<WorkerProcess>> WorkerProcess::Create(const Options& options,
                                                                     OnSignal on_signal) {
  std::unique_ptr<WorkerProcess> process(new WorkerProcess(options));
  SH_RETURN_IF_ERROR(process->Init(std::move(on_signal)));
  return process;
}

absl::Status WorkerProcess::Init(OnSignal on_signal) {
  signals_ = std::make_unique<Signals>(loop_, std::move(on_signal));
  const absl::Duration give_up = SystemClock().Now() + options_.file_wait;
  absl::StatusOr<CoordinatorFile> file = ReadCoordinatorFile(options_.coordinator_file);
  while (absl::IsNotFound(file.status()) && SystemClock().Now() < give_up) {
    if (signals_->CameWithin(kFilePoll)) {
      return absl::CancelledError("told to stop before there was a coordinator");
    }
    file = ReadCoordinatorFile(options_.coordinator_file);
  }
  SH_RETURN_IF_ERROR_AT(file, "finding the coordinator");
  coordinator_ = std::make_unique<Connection>(loop_);
  cache_ = std::make_unique<Connection>(loop_);
  SH_RETURN_IF_ERROR(coordinator_->ConnectTo(file->address));
  SH_RETURN_IF_ERROR(cache_->ConnectTo(file->cache));
  file_reader_ = std::make_unique<ThreadPool>(1);
  loop_.PostAfter(options_.file_period, [this] { WatchFile(); });
  thread_ = std::thread([this] { loop_.Run(); });
  return absl::OkStatus();
}

void WorkerProcess::WatchFile() {
  file_reader_->Post([this] {
    absl::StatusOr<CoordinatorFile> file = ReadCoordinatorFile(options_.coordinator_file);
    loop_.Post([this, file = std::move(file)] {
      // Not there, or half of it: the coordinator is between two lives.
      if (file.ok()) TakeFile(*file);
      loop_.PostAfter(options_.file_period, [this] { WatchFile(); });
    });
  });
}

void WorkerProcess::TakeFile(const CoordinatorFile& file) {
  for (const absl::Status& status :
       {coordinator_->ConnectTo(file.address), cache_->ConnectTo(file.cache)}) {
    if (!status.ok()) LogWarning(status.ToString());
  }
}

WorkerProcess::~WorkerProcess() {
  Stop();
  file_reader_.reset();
}

void WorkerProcess::Stop() {
  loop_.Stop();
  if (thread_.joinable()) thread_.join();
}

RpcClient& WorkerProcess::coordinator() { return coordinator_->rpc(); }
RpcClient& WorkerProcess::cache() { return cache_->rpc(); }
int64_t WorkerProcess::pid() const { return getpid(); }

}  // namespace stillhouse

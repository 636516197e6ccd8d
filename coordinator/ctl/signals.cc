#include "coordinator/ctl/signals.h"

#include <errno.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <utility>

#include "common/status.h"

namespace stillhouse {

SignalWatch::SignalWatch(EventLoop& loop, std::function<void(int signal)> on_signal)
    : loop_(loop), on_signal_(std::move(on_signal)) {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGCHLD}) sigaddset(&signals, signal);
  SH_CHECK(pthread_sigmask(SIG_BLOCK, &signals, &old_mask_) == 0);
  fd_ = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
  SH_CHECK(fd_ >= 0, "signalfd failed, errno ", errno);
  loop_.WatchFd(fd_, [this] {
    signalfd_siginfo info;
    while (read(fd_, &info, sizeof(info)) == sizeof(info)) on_signal_(info.ssi_signo);
  });
}

SignalWatch::~SignalWatch() {
  loop_.UnwatchFd(fd_);
  close(fd_);
  pthread_sigmask(SIG_SETMASK, &old_mask_, nullptr);
}

}  // namespace stillhouse

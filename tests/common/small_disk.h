// SmallDisk: a tmpfs of a few pages, for tests of what happens when it is full. Header only: tests
// of several folders use it.
#pragma once

#include <sys/mount.h>
#include <sys/statvfs.h>

#include <string>
#include <utility>

#include "common/file.h"
#include "common/status.h"

namespace stillhouse {

// Unmounted with the object. Only root may mount: look at mounted() and skip the test if it is not.
class SmallDisk {
 public:
  // `size`: of mount(8), for example "size=225m,mode=700".
  SmallDisk(std::string path, const char* size) : path_(std::move(path)) {
    SH_CHECK_OK(MakeFolders(path_));
    mounted_ = mount("none", path_.c_str(), "tmpfs", 0, size) == 0;
  }
  ~SmallDisk() {
    if (mounted_) umount2(path_.c_str(), MNT_DETACH);
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;

  bool mounted() const { return mounted_; }
  const std::string& path() const { return path_; }
  void Resize(const char* size) {
    SH_CHECK(mount("none", path_.c_str(), "tmpfs", MS_REMOUNT, size) == 0);
  }
  // Writes a file that leaves so many bytes, rounded to pages, or removes it when there is less.
  void LeaveRoom(size_t bytes) {
    const std::string filler = JoinPath(path_, "filler");
    SH_CHECK_OK(RemoveTree(filler));
    struct statvfs info {};
    SH_CHECK(statvfs(path_.c_str(), &info) == 0);
    const size_t free = info.f_bavail * info.f_bsize;
    if (free <= bytes) return;
    // Written next to its name first, then renamed: it takes its room once.
    SH_CHECK_OK(WriteFileAtomically(filler, std::string(free - bytes, 'x')));
  }

 private:
  const std::string path_;
  bool mounted_ = false;
};

}  // namespace stillhouse

#include "storage/async_store.h"

#include <algorithm>
#include <deque>
#include <vector>

#include "common/log.h"
#include "common/mutex.h"
#include "common/thread_pool.h"

namespace stillhouse {
namespace {

class PoolAsyncStore final : public AsyncStore {
 public:
  PoolAsyncStore(TeacherCache& sections, ObjectStore& objects, Executor& executor, int read_threads)
      : sections_(sections),
        objects_(objects),
        executor_(executor),
        group_bytes_max_(
            std::min(kPutGroupBytesMax, kGroupSegmentsMax * sections.segment_bytes_min())),
        writer_(std::make_unique<ThreadPool>(1)),
        readers_(std::make_unique<ThreadPool>(read_threads)) {}

  // Readers pass checked puts on to the writer, so they end first.
  ~PoolAsyncStore() override {
    readers_.reset();
    writer_.reset();
  }

  void RunRead(Work work) override {
    readers_->Post([this, work = std::move(work)]() mutable {
      executor_.Post(work(sections_, objects_));
      if (!sections_.HasUnsavedDamage()) return;
      writer_->Post([this] {
        const absl::Status saved = sections_.SaveDamage();
        if (!saved.ok()) LogWarning("noting damage: ", saved.message());
      });
    });
  }
  void RunWrite(Work work) override {
    writer_->Post(
        [this, work = std::move(work)]() mutable { executor_.Post(work(sections_, objects_)); });
  }

  void Put(PutItem item, Callback<PutCounts> done) override {
    readers_->Post([this, item = std::move(item), done = std::move(done)]() mutable {
      absl::Status checked = CheckPut(item);
      if (!checked.ok()) {
        Finish(std::move(done), std::move(checked));
        return;
      }
      {
        MutexLock lock(mutex_);
        waiting_.push_back({std::move(item), std::move(done)});
      }
      writer_->Post([this] { WriteGroup(); });
    });
  }

 private:
  struct WaitingPut {
    PutItem item;
    Callback<PutCounts> done;
  };

  void Finish(Callback<PutCounts> done, absl::StatusOr<PutCounts> result) {
    executor_.Post([done = std::move(done), result = std::move(result)]() mutable {
      done(std::move(result));
    });
  }

  // Everything that came while the writer was busy, up to the limit, under one sync.
  void WriteGroup() {
    std::vector<PutItem> items;
    std::vector<Callback<PutCounts>> dones;
    {
      MutexLock lock(mutex_);
      uint64_t bytes = 0;
      while (!waiting_.empty() && bytes < group_bytes_max_) {
        for (const Part& part : waiting_.front().item.parts) bytes += part.payload.size();
        items.push_back(std::move(waiting_.front().item));
        dones.push_back(std::move(waiting_.front().done));
        waiting_.pop_front();
      }
    }
    if (items.empty()) return;
    auto counts = sections_.Put(items);
    if (counts.ok()) {
      for (size_t i = 0; i < items.size(); ++i) Finish(std::move(dones[i]), (*counts)[i]);
    } else if (items.size() == 1) {
      Finish(std::move(dones[0]), std::move(counts).status());
    } else {
      // One item must not spoil the others: each on its own.
      for (size_t i = 0; i < items.size(); ++i) Finish(std::move(dones[i]), PutAlone(items[i]));
    }
  }

  absl::StatusOr<PutCounts> PutAlone(const PutItem& item) {
    auto counts = sections_.Put(absl::MakeConstSpan(&item, 1));
    if (!counts.ok()) return std::move(counts).status();
    return (*counts)[0];
  }

  TeacherCache& sections_;
  ObjectStore& objects_;
  Executor& executor_;
  const uint64_t group_bytes_max_;
  Mutex mutex_;
  std::deque<WaitingPut> waiting_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<ThreadPool> writer_;
  std::unique_ptr<ThreadPool> readers_;
};

}  // namespace

std::unique_ptr<AsyncStore> MakePoolAsyncStore(TeacherCache& sections, ObjectStore& objects,
                                               Executor& executor, int read_threads) {
  return std::make_unique<PoolAsyncStore>(sections, objects, executor, read_threads);
}

}  // namespace stillhouse

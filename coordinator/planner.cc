#include "coordinator/planner.h"

#include <utility>

#include "common/log.h"
#include "common/status.h"

namespace stillhouse {

Planner::Planner(CacheInventory& cache, Executor& executor, Callbacks callbacks)
    : cache_(cache), executor_(executor), callbacks_(std::move(callbacks)) {}

Planner::~Planner() {
  for (auto& [job, question] : questions_) executor_.Cancel(question.retry_timer);
  for (auto& [job, question] : room_questions_) executor_.Cancel(question->retry_timer);
}

void Planner::MakeRoom(const RoomAsk& ask) {
  std::shared_ptr<RoomQuestion>& question = room_questions_[ask.job];
  if (question != nullptr) executor_.Cancel(question->retry_timer);  // of an earlier generation
  question = std::make_shared<RoomQuestion>();
  AskForRoom(ask, question);
}

void Planner::AskForRoom(const RoomAsk& ask, std::shared_ptr<RoomQuestion> question) {
  if (callbacks_.capture(ask.job, ask.generation) == nullptr) return;
  cache_.MakeRoom(ask.job, ask.release,
                  [this, alive = std::weak_ptr<bool>(alive_), ask,
                   question = std::move(question)](absl::StatusOr<uint64_t> used) {
                    if (alive.expired()) return;
                    if (used.ok()) return callbacks_.room_made(ask, *used);
                    LogWarning("making room for ", ask.job, ": ", used.status().ToString());
                    question->retry_timer =
                        executor_.PostAfter(question->backoff.Next(),
                                            [this, ask, question] { AskForRoom(ask, question); });
                  });
}

void Planner::Ask(const InventoryAsk& ask) {
  Question& question = questions_[ask.job];
  if (question.generation != ask.generation) {
    // What was wanted of an earlier generation is void; an answer under way will be dropped.
    executor_.Cancel(question.retry_timer);
    question = Question{};
    question.generation = ask.generation;
  }
  question.wanted.insert(ask.chunks.begin(), ask.chunks.end());
  if (ask.reconcile) {
    question.reconcile = true;
    question.to_reconcile.insert(ask.chunks.begin(), ask.chunks.end());
  }
  if (!question.out) AskNext(ask.job);
}

void Planner::AskNext(const std::string& job) {
  Question& question = questions_[job];
  const CaptureSetup* capture = callbacks_.capture(job, question.generation);
  if (capture == nullptr || question.wanted.empty()) {
    questions_.erase(job);
    return;
  }
  InventoryAsk asked{job, question.generation, {}};
  while (!question.wanted.empty() && asked.chunks.size() < kAskChunksMax) {
    asked.chunks.push_back(*question.wanted.begin());
    question.wanted.erase(question.wanted.begin());
  }
  question.out = true;
  std::vector<uint32_t> chunks = asked.chunks;
  cache_.Ask(*capture, std::move(chunks),
             [this, alive = std::weak_ptr<bool>(alive_), job,
              asked = std::move(asked)](absl::StatusOr<std::vector<bool>> present) mutable {
               if (!alive.expired()) OnAnswer(job, std::move(asked), std::move(present));
             });
}

void Planner::OnAnswer(const std::string& job, InventoryAsk asked,
                       absl::StatusOr<std::vector<bool>> present) {
  auto it = questions_.find(job);
  if (it == questions_.end() || it->second.generation != asked.generation) return;
  Question& question = it->second;
  if (present.ok() && present->size() != asked.chunks.size()) {
    present = absl::DataLossError(
        absl::StrCat("asked about ", asked.chunks.size(), " chunks, answered ", present->size()));
  }
  if (!present.ok()) {
    LogWarning("asking the cache about ", job, ": ", present.status().ToString());
    question.wanted.insert(asked.chunks.begin(), asked.chunks.end());
    question.retry_timer =
        executor_.PostAfter(question.backoff.Next(), [this, job] { AskNext(job); });
    return;
  }
  question.backoff.Reset();
  InventoryAsk valid{job, asked.generation, {}};
  std::vector<bool> valid_present;
  for (size_t i = 0; i < asked.chunks.size(); ++i) {
    question.to_reconcile.erase(asked.chunks[i]);
    // Raised again meanwhile: absent may be old news. Present stays true.
    if (question.wanted.count(asked.chunks[i]) > 0 && !(*present)[i]) continue;
    valid.chunks.push_back(asked.chunks[i]);
    valid_present.push_back((*present)[i]);
  }
  const bool reconciled = question.reconcile && question.to_reconcile.empty();
  if (reconciled) question.reconcile = false;
  callbacks_.answered(valid, valid_present);
  if (reconciled) callbacks_.reconciled(job, asked.generation);
  it = questions_.find(job);
  if (it == questions_.end() || it->second.generation != asked.generation) return;
  it->second.out = false;
  AskNext(job);
}

}  // namespace stillhouse

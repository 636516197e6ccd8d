// A State with a clock that the test moves, and the cache answered by hand.
#pragma once

#include <gtest/gtest.h>

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "common/digest.h"
#include "coordinator/state.h"

namespace stillhouse {

class StateTest : public ::testing::Test {
 protected:
  static SubmitEvent Submission(int training, int held_out = 0) {
    SubmitEvent event;
    event.key = "key-1";
    event.name = "j";
    event.recipe_path = "/r/j.yaml";
    event.recipe_text = "name: j\n";
    event.capture.plan = Sha256Of("plan");
    event.capture.teacher = Sha256Of("teacher");
    event.capture.teacher_dtype = "bf16";
    event.capture.sections = {"stats"};
    event.capture.held_out_sections = {"stats"};
    for (int i = 0; i < training; ++i) event.chunks.push_back({100, false});
    for (int i = 0; i < held_out; ++i) event.chunks.push_back({100, true});
    event.runs = {{"run/j/a", "a", "/out/a", "hash-a", 10},
                  {"run/j/b", "b", "/out/b", "hash-b", 10}};
    return event;
  }

  SubmitAnswer Submit(const SubmitEvent& event) {
    absl::StatusOr<SubmitAnswer> answer = OnSubmit(state_, event, now_, effects_);
    EXPECT_TRUE(answer.ok()) << answer.status();
    return answer.ok() ? *answer : SubmitAnswer{};
  }

  // The cache answers every question asked so far: `durable_` chunks are there, the others are not.
  void AnswerCache() {
    while (!effects_.asks.empty()) {
      const InventoryAsk ask = effects_.asks.front();
      effects_.asks.erase(effects_.asks.begin());
      std::vector<bool> present;
      for (const uint32_t chunk : ask.chunks) present.push_back(durable_.count(chunk) > 0);
      OnInventory(state_, ask, present, now_, effects_);
      if (ask.reconcile) OnReconciled(state_, ask.job, ask.generation, effects_);
    }
  }

  void SubmitAndReconcile(int training, int held_out = 0) {
    Submit(Submission(training, held_out));
    AnswerCache();
  }

  RegisterEvent Registration(const std::string& name, uint64_t incarnation) const {
    RegisterEvent event;
    event.worker = {name, incarnation};
    event.teacher = Sha256Of("teacher");
    event.teacher_dtype = "bf16";
    event.state = "ready";
    return event;
  }
  std::vector<GrantRef> Register(const std::string& name, uint64_t incarnation,
                                 std::vector<GrantRef> held = {}) {
    RegisterEvent event = Registration(name, incarnation);
    event.held = std::move(held);
    absl::StatusOr<std::vector<GrantRef>> kept = OnRegister(state_, event, now_, effects_);
    EXPECT_TRUE(kept.ok()) << kept.status();
    return kept.ok() ? *kept : std::vector<GrantRef>{};
  }

  LeaseAnswer Lease(const std::string& name, uint64_t incarnation) {
    return OnLease(state_, {{name, incarnation}, ++sequence_}, now_, effects_);
  }
  // REQUIRES: something is granted.
  GrantRef MustLease(const std::string& name, uint64_t incarnation) {
    const LeaseAnswer answer = Lease(name, incarnation);
    EXPECT_TRUE(answer.grant.has_value()) << answer.leave;
    return answer.grant.value_or(GrantRef{});
  }

  // The rows are in the cache and the worker says so.
  void Finish(const GrantRef& grant, const std::string& name, uint64_t incarnation,
              uint64_t rows = 100) {
    durable_.insert(grant.chunk);
    EXPECT_TRUE(OnDone(state_, {{name, incarnation}, grant, rows, 0}, now_, effects_).ok());
    AnswerCache();
  }
  void Fail(const GrantRef& grant, const std::string& name, uint64_t incarnation,
            bool chunk_at_fault) {
    EXPECT_TRUE(
        OnFailed(state_, {{name, incarnation}, grant, "nan", chunk_at_fault, false}, now_, effects_)
            .ok());
  }
  HeartbeatAnswer Beat(const std::string& name, uint64_t incarnation,
                       std::vector<HeartbeatEvent::Progress> progress = {},
                       const std::string& state = "working") {
    return OnHeartbeat(state_, {{name, incarnation}, state, std::move(progress)}, now_, effects_);
  }

  // Time goes on in ticks, as it does in a healthy coordinator.
  void Pass(absl::Duration time) {
    const absl::Duration end = now_ + time;
    while (now_ < end) {
      now_ = std::min(end, now_ + kTickPeriod);
      ObserveTime(state_, now_);
      OnTick(state_, now_, effects_);
    }
  }

  Job& job() { return state_.jobs.at("job/j"); }
  const Chunk& chunk(uint32_t index) { return job().chunks.at(index); }

  State state_;
  absl::Duration now_ = absl::Seconds(1000);
  Effects effects_;
  std::set<uint32_t> durable_;
  uint64_t sequence_ = 0;
};

}  // namespace stillhouse

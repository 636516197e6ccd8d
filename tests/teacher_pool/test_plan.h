// Real plans for tests: random documents through PlanWriter.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "common/file.h"
#include "common/random.h"
#include "common/status.h"
#include "dataset/plan.h"
#include "dataset/plan_writer.h"

namespace stillhouse::testing {

struct TestPlanOptions {
  std::vector<uint32_t> lengths;
  uint32_t vocabulary = 90;
  uint32_t max_tokens = 64;
  uint64_t chunk_tokens = 100;
  uint64_t seed = 1;
  size_t held_out_documents = 0;  // the last of them
};

// The bytes of the plan's file.
inline std::shared_ptr<const std::string> MakeTestPlanBytes(const TestPlanOptions& options) {
  auto folder = TempFolder::Create("plan");
  SH_CHECK_OK(folder.status());
  PlanWriter::Options writer_options;
  writer_options.folder = folder->path();
  writer_options.tokenizer = Sha256Of("test tokenizer");
  writer_options.vocabulary = options.vocabulary;
  writer_options.max_tokens = options.max_tokens;
  writer_options.chunk_tokens = options.chunk_tokens;
  writer_options.seed = options.seed;
  writer_options.domains = {"test"};
  auto writer = PlanWriter::Create(writer_options);
  SH_CHECK_OK(writer.status());
  RandomStream random(options.seed, 77);
  std::vector<bool> held_out;
  for (const uint32_t length : options.lengths) {
    std::vector<int32_t> tokens(length);
    for (int32_t& token : tokens) {
      token = static_cast<int32_t>(random.NextBelow(options.vocabulary));
    }
    const uint32_t source = static_cast<uint32_t>(held_out.size());
    SH_CHECK_OK((*writer)->Add(tokens, std::vector<uint8_t>(length, 1), 0, source));
    held_out.push_back(held_out.size() + options.held_out_documents >= options.lengths.size());
  }
  const auto written = (*writer)->Finish(held_out);
  SH_CHECK_OK(written.status());
  auto bytes = ReadFile(written->path);
  SH_CHECK_OK(bytes.status());
  return std::make_shared<const std::string>(*std::move(bytes));
}

inline std::shared_ptr<const Plan> MakeTestPlan(const TestPlanOptions& options) {
  auto plan = ParsePlan(MakeTestPlanBytes(options));
  SH_CHECK_OK(plan.status());
  return *std::move(plan);
}

}  // namespace stillhouse::testing

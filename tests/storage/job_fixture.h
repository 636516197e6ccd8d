// A small job, wholly captured: its plan, job object, an artefact and all sections.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "common/file.h"
#include "common/status.h"
#include "dataset/plan_writer.h"
#include "storage/cache_directory.h"
#include "storage/job_object.h"
#include "storage/service/cache_client.h"
#include "tests/storage/section_fixtures.h"

namespace stillhouse {

// The bytes of a plan of 8 documents with 20 to 27 tokens, the last two held out.
inline std::shared_ptr<const std::string> TestPlanBytes() {
  const TempFolder folder = *TempFolder::Create();
  auto writer = *PlanWriter::Create({.folder = folder.path(),
                                     .tokenizer = Sha256Of("tokenizer"),
                                     .vocabulary = 1000,
                                     .max_tokens = 40,
                                     .chunk_tokens = 60,
                                     .seed = 1,
                                     .domains = {"test"}});
  std::vector<bool> held_out;
  for (int32_t d = 0; d < 8; ++d) {
    const std::vector<int32_t> tokens(20 + d, d);
    SH_CHECK_OK(writer->Add(tokens, std::vector<uint8_t>(tokens.size(), 1), 0, d));
    held_out.push_back(d >= 6);
  }
  const auto written = *writer->Finish(held_out);
  return std::make_shared<const std::string>(*ReadFile(written.path));
}

inline JobObject TestJob(const Digest& plan) {
  return {
      "test", plan, TestTeacher(), {SectionSpec{}, SampledSpec()}, {SectionSpec{}, HiddenSpec(8)}};
}

// What the job wants of document `d`.
inline std::vector<PutItem> TestDocumentItems(const Plan& plan, uint32_t d, uint64_t seed) {
  const PlanDocument document = plan.document(d);
  const JobObject job = TestJob(plan.digest());
  std::vector<PutItem> items;
  for (const SectionSpec& spec :
       plan.chunk(document.chunk).held_out ? job.held_out_sections : job.sections) {
    items.push_back({TestParts(spec, document.key, document.rows(), seed),
                     TestProvenance(spec, document.chunk)});
  }
  return items;
}

inline void FillTestJob(CacheDirectory& cache) {
  const auto bytes = TestPlanBytes();
  const auto plan = *ParsePlan(bytes);
  const auto put = [&cache](const std::string& name, const std::string& object) {
    SH_CHECK_OK(cache.objects().PutPiece({name, object.size(), 0, false, 1, object}));
  };
  put(PlanObjectName(plan->digest()), *bytes);
  put(JobObjectName("test"), EncodeJobObject(TestJob(plan->digest())));
  put(ArtefactObjectName(TestTeacher(), "head"), std::string(1000, 'h'));
  for (uint32_t d = 0; d < plan->document_count(); ++d) {
    SH_CHECK_OK(cache.sections().Put(TestDocumentItems(*plan, d, d)));
  }
}

}  // namespace stillhouse

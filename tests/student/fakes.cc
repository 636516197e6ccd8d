#include "tests/student/fakes.h"

#include <algorithm>
#include <cmath>

#include "common/file.h"
#include "common/random.h"
#include "common/status.h"
#include "common/tensor_view.h"
#include "dataset/plan_writer.h"
#include "storage/codec.h"
#include "storage/codec/top_tokens.h"

namespace stillhouse {

std::string MakeTestPlanBytes(const TestPlanOptions& options) {
  absl::StatusOr<TempFolder> folder = TempFolder::Create("stillhouse-plan");
  SH_CHECK_OK(folder);
  auto writer = PlanWriter::Create({.folder = folder->path(),
                                    .tokenizer = options.tokenizer,
                                    .vocabulary = options.vocabulary,
                                    .max_tokens = options.rows_max + 1,
                                    .shuffle_window = options.shuffle_window,
                                    .chunk_tokens = options.chunk_tokens,
                                    .seed = options.seed,
                                    .domains = {"default"}});
  SH_CHECK_OK(writer);
  RandomStream random(options.seed);
  std::vector<bool> held_out;
  for (uint32_t i = 0; i < options.documents + options.held_out_documents; ++i) {
    held_out.push_back(i >= options.documents);
    const auto rows = static_cast<uint32_t>(
        options.rows_min + random.NextBelow(options.rows_max - options.rows_min + 1));
    std::vector<int32_t> tokens(rows + 1);
    for (int32_t& token : tokens)
      token = static_cast<int32_t>(random.NextBelow(options.vocabulary));
    std::vector<uint8_t> mask(rows + 1, 1);
    for (size_t t = 0; options.masked && t < mask.size(); t += 3) mask[t] = 0;
    SH_CHECK_OK((*writer)->Add(tokens, mask, /*domain=*/0, /*source=*/i));
  }
  auto written = (*writer)->Finish(held_out);
  SH_CHECK_OK(written);
  auto bytes = ReadFile(written->path);
  SH_CHECK_OK(bytes);
  return *bytes;
}

std::shared_ptr<const Plan> MakeTestPlan(const TestPlanOptions& options) {
  auto plan = ParsePlan(std::make_shared<const std::string>(MakeTestPlanBytes(options)));
  SH_CHECK_OK(plan);
  return *plan;
}

std::vector<SectionSpec> TestTeacher::Sections() const {
  std::vector<SectionSpec> sections = {
      {.kind = SectionKind::kStats},
      {.kind = SectionKind::kLogitsSampled, .draws = draws},
      {.kind = SectionKind::kHiddenLast, .hidden_size = hidden_size}};
  if (top_k > 0) sections.push_back({.kind = SectionKind::kLogitsTopK, .k = top_k});
  return sections;
}

DocumentTargets TestTeacher::Targets(const Plan& plan, uint32_t document) const {
  const PlanDocument planned = plan.document(document);
  uint64_t seed = 0;
  for (int i = 0; i < 8; ++i) seed = seed << 8 | planned.key.bytes[i];
  RandomStream random(seed);
  DocumentTargets targets;
  targets.document = document;
  targets.sampled.draws = draws;
  targets.hidden.hidden_size = hidden_size;
  for (uint32_t row = 0; row < planned.rows(); ++row) {
    std::vector<uint16_t> counts(vocabulary);
    // Near the true next token, as a teacher's would be.
    for (uint32_t draw = 0; draw < draws; ++draw) {
      const bool right = random.NextUniform() < 0.4;
      ++counts[right ? planned.tokens[row + 1] : random.NextBelow(vocabulary)];
    }
    for (uint32_t id = 0; id < vocabulary; ++id) {
      if (counts[id] == 0) continue;
      targets.sampled.ids.push_back(static_cast<int32_t>(id));
      targets.sampled.counts.push_back(counts[id]);
    }
    targets.sampled.offsets.push_back(static_cast<uint32_t>(targets.sampled.ids.size()));
    targets.stats.entropy.push_back(static_cast<float>(1 + random.NextUniform()));
    targets.stats.logsumexp.push_back(10.0f);
    targets.stats.top1_id.push_back(planned.tokens[row + 1]);
    targets.stats.top1_logprob.push_back(-1.0f);
    targets.stats.next_logprob.push_back(-1.0f);
    for (uint32_t i = 0; i < hidden_size; ++i) {
      targets.hidden.values.push_back(FloatToBf16(static_cast<float>(random.NextNormal())));
    }
    if (top_k == 0) continue;
    // All ids alike, but for the true next token.
    std::vector<float> logprobs(vocabulary, static_cast<float>(std::log(0.6 / (vocabulary - 1))));
    logprobs[static_cast<size_t>(planned.tokens[row + 1])] = static_cast<float>(std::log(0.4));
    AppendTopRow(logprobs, {.k = top_k}, &targets.top);
  }
  return targets;
}

std::vector<Part> TestTeacher::Parts(const Plan& plan, uint32_t document) const {
  const PlanDocument planned = plan.document(document);
  const DocumentTargets targets = Targets(plan, document);
  std::vector<Part> parts;
  for (const SectionSpec& spec : Sections()) {
    const Digest section = SectionKey(fingerprint, planned.key, spec);
    for (uint32_t begin = 0; begin < planned.rows(); begin += spec.RowsPerPart()) {
      const uint32_t end = std::min(planned.rows(), begin + spec.RowsPerPart());
      Part part{{section, begin}, end - begin, {}};
      if (spec.kind == SectionKind::kStats) part.payload = EncodeStats(targets.stats, begin, end);
      if (spec.kind == SectionKind::kLogitsSampled) {
        part.payload = EncodeSampled(targets.sampled, begin, end);
      }
      if (spec.kind == SectionKind::kHiddenLast) {
        part.payload = EncodeHidden(targets.hidden, begin, end);
      }
      if (spec.kind == SectionKind::kLogitsTopK) {
        part.payload = EncodeTopTokens(targets.top, begin, end);
      }
      parts.push_back(std::move(part));
    }
  }
  return parts;
}

void FakeCache::AddChunk(const Plan& plan, const TestTeacher& teacher, uint32_t chunk) {
  const PlanChunk range = plan.chunk(chunk);
  for (uint32_t document = range.begin; document < range.end; ++document) {
    for (Part& part : teacher.Parts(plan, document)) parts[part.key] = std::move(part);
  }
}

void FakeCache::Put(std::vector<Part>, Provenance, Callback<StoreAck>) {
  SH_CHECK(false, "a student never writes");
}
void FakeCache::PutObject(std::string, std::shared_ptr<const std::string>, PutObjectOptions,
                          Callback<StoreAck>) {
  SH_CHECK(false, "a student never writes");
}
void FakeCache::Inventory(InventoryRequest, Callback<std::vector<bool>>) {
  SH_CHECK(false, "a student asks the coordinator");
}

void FakeCache::Get(std::vector<PartKey> keys, Callback<std::vector<std::optional<Part>>> done) {
  ++gets;
  keys_in_largest_get = std::max(keys_in_largest_get, keys.size());
  executor_.Post([this, keys = std::move(keys), done = std::move(done)]() mutable {
    std::vector<std::optional<Part>> answers;
    for (const PartKey& key : keys) {
      const auto it = parts.find(key);
      answers.push_back(it == parts.end() ? std::nullopt : std::optional<Part>(it->second));
    }
    done(std::move(answers));
  });
}

void FakeCache::GetObject(std::string name, Callback<std::shared_ptr<const std::string>> done) {
  executor_.Post([this, name = std::move(name), done = std::move(done)]() mutable {
    const auto it = objects.find(name);
    if (it == objects.end()) {
      done(absl::NotFoundError(absl::StrCat(name, ": not in the cache")));
    } else {
      done(std::make_shared<const std::string>(it->second));
    }
  });
}

void FakeRun::Start(Callback<RunSpec>) { SH_CHECK(false, "the test gives the spec"); }

void FakeRun::Want(std::vector<WantItem> items, Callback<WantAnswer> done) {
  executor_.Post([this, items = std::move(items), done = std::move(done)]() mutable {
    WantAnswer answer;
    answer.retry = retry;
    answer.cancelled = cancelled;
    for (const WantItem& item : items) {
      wanted.insert(item.chunk);
      const auto it = states.find(item.chunk);
      answer.states.push_back(it == states.end() ? ChunkAvailability::kPending : it->second);
    }
    done(std::move(answer));
  });
}

void FakeRun::Report(RunReport report, Callback<bool> done) {
  executor_.Post([this, report = std::move(report), done = std::move(done)]() mutable {
    if (on_report != nullptr) on_report(report);
    reports.push_back(std::move(report));
    done(cancelled);
  });
}

void FakeRun::CommitCheckpoint(uint64_t, std::string folder, Callback<bool> done) {
  executor_.Post([this, folder = std::move(folder), done = std::move(done)]() mutable {
    if (on_commit != nullptr) on_commit();
    if (!commit_status.ok()) return done(commit_status);
    committed = std::move(folder);
    done(true);
  });
}

}  // namespace stillhouse

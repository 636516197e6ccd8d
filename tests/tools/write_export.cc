// write_export FOLDER: an export with every kind of section and codec, and beside it what the C++
// decoders say of it, for readers in other languages to be compared with.
//
// FOLDER/export is the export, FOLDER/expected.json has for every document and section the decoded
// values; of values too many to write as text, the SHA-256 of their canonical form alone.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "common/file.h"
#include "common/tensor_view.h"
#include "storage/service/job_export.h"
#include "tests/storage/job_fixture.h"

namespace stillhouse {
namespace {

using Json = nlohmann::json;

constexpr uint32_t kWide = 1u << 17;  // sixteen rows a part
constexpr uint32_t kVocabularyWide = 1u << 22;
constexpr size_t kValuesAsText = 200'000;

SectionSpec Hidden(SectionKind kind, uint32_t width, HiddenDtype dtype) {
  return {.kind = kind,
          .hidden_size = width,
          .layer = kind == SectionKind::kHiddenLast ? 0u : 3u,
          .dtype = dtype};
}

JobObject Job(const Digest& plan) {
  const SectionSpec top_k = {.kind = SectionKind::kLogitsTopK, .k = 24};
  const SectionSpec top_p = {.kind = SectionKind::kLogitsTopP, .k = 100, .p_millionths = 950'000};
  const SectionSpec few_draws = {.kind = SectionKind::kLogitsSampled, .draws = 3};
  const SectionSpec many_draws = {.kind = SectionKind::kLogitsSampled, .draws = 200};
  return {"test",
          plan,
          TestTeacher(),
          {SectionSpec{}, SampledSpec(), few_draws, many_draws, top_k, top_p,
           Hidden(SectionKind::kHiddenLayer, 100, HiddenDtype::kInt8)},
          {SectionSpec{}, Hidden(SectionKind::kHiddenLast, kWide, HiddenDtype::kBf16)}};
}

// Documents of 2, 3 and more tokens; long ones, so that models are rebuilt and halved.
std::shared_ptr<const std::string> PlanBytes() {
  const TempFolder folder = *TempFolder::Create();
  auto writer = *PlanWriter::Create({.folder = folder.path(),
                                     .tokenizer = Sha256Of("tokenizer"),
                                     .vocabulary = 1000,
                                     .max_tokens = 1000,
                                     .chunk_tokens = 700,
                                     .seed = 1,
                                     .domains = {"prose", "verse"}});
  std::vector<bool> held_out;
  for (const uint32_t length : {2, 3, 20, 70, 150, 300, 2, 18, 40}) {
    const auto d = static_cast<uint32_t>(held_out.size());
    std::vector<int32_t> tokens(length);
    std::vector<uint8_t> mask(length);
    for (uint32_t i = 0; i < length; ++i) {
      tokens[i] = static_cast<int32_t>((i * 7 + d) % 1000);
      mask[i] = (i + d) % 3 != 0;
    }
    SH_CHECK_OK(writer->Add(tokens, mask, d % 2, d));
    held_out.push_back(d >= 7);
  }
  const auto written = *writer->Finish(held_out);
  return std::make_shared<const std::string>(*ReadFile(written.path));
}

SectionRows RowsOf(const SectionSpec& spec, uint32_t rows, uint64_t seed) {
  if (spec.kind == SectionKind::kLogitsSampled && seed % 2 == 1) {
    return MakeSampled(static_cast<int>(rows), spec.draws, kVocabularyWide, seed);
  }
  return MakeRows(spec, rows, seed);
}

Json AsJson(const SectionRows& rows) {
  Json json;
  if (const auto* stats = std::get_if<StatsRows>(&rows)) {
    json = {{"entropy", stats->entropy},
            {"logsumexp", stats->logsumexp},
            {"top1_id", stats->top1_id},
            {"top1_logprob", stats->top1_logprob},
            {"next_logprob", stats->next_logprob}};
  } else if (const auto* sampled = std::get_if<SampledRows>(&rows)) {
    json = {{"offsets", sampled->offsets}, {"ids", sampled->ids}, {"counts", sampled->counts}};
  } else if (const auto* top = std::get_if<TopTokenRows>(&rows)) {
    std::vector<float> logprobs, residual;
    for (size_t row = 0; row < top->rows(); ++row) {
      std::vector<float> values = LogProbabilities(*top, row);
      residual.push_back(values.back());
      logprobs.insert(logprobs.end(), values.begin(), values.end() - 1);
    }
    json = {{"offsets", top->offsets},
            {"ids", top->ids},
            {"logprobs", logprobs},
            {"residual", residual}};
  } else if (const auto& hidden = std::get<HiddenRows>(rows);
             hidden.values.size() <= kValuesAsText) {
    Json values = Json::array();
    for (size_t row = 0; row < hidden.rows(); ++row) {
      std::vector<float> line;
      for (uint32_t i = 0; i < hidden.hidden_size; ++i) {
        line.push_back(Bf16ToFloat(hidden.values[row * hidden.hidden_size + i]));
      }
      values.push_back(line);
    }
    json = {{"values", values}};
  }
  return json;
}

// Encodes the rows in parts, and says what they decode to.
std::vector<Part> Encode(const SectionSpec& spec, const PlanDocument& document, uint64_t seed,
                         Json* expected) {
  const SectionRows rows = RowsOf(spec, document.rows(), seed);
  SectionRows decoded = NoRows(spec);
  std::vector<Part> parts;
  for (uint32_t begin = 0; begin < document.rows(); begin += spec.RowsPerPart()) {
    const uint32_t end = std::min(document.rows(), begin + spec.RowsPerPart());
    Part part{{SectionKey(TestTeacher(), document.key, spec), begin},
              end - begin,
              EncodeSection(spec, rows, begin, end)};
    SH_CHECK_OK(DecodeSection(spec, part.payload, part.row_count, kVocabularyMax, &decoded));
    parts.push_back(std::move(part));
  }
  (*expected)[spec.Canonical()] = {{"rows", AsJson(decoded)},
                                   {"sha256", Sha256Of(*CanonicalValues(decoded)).Hex()}};
  return parts;
}

int Main(const std::string& folder) {
  const auto kv = MakeMemoryKvStore(4);
  const auto sections = *TeacherCache::Open(*kv, "store");
  const auto objects = *ObjectStore::Open(*kv, /*writable=*/true);
  const auto store = MakeLocalJobStore(*sections, *objects);
  const auto bytes = PlanBytes();
  const auto plan = *ParsePlan(bytes);
  const JobObject job = Job(plan->digest());
  const auto put = [&](const std::string& name, const std::string& object) {
    SH_CHECK_OK(store->PutObject(name, std::make_shared<const std::string>(object)));
  };
  put(PlanObjectName(plan->digest()), *bytes);
  put(JobObjectName(job.name), EncodeJobObject(job));
  put(ArtefactObjectName(job.teacher, "tokenizer"), "{}");
  Json documents = Json::array();
  for (uint32_t d = 0; d < plan->document_count(); ++d) {
    const PlanDocument document = plan->document(d);
    const bool held_out = plan->chunk(document.chunk).held_out;
    Json described = {
        {"key", document.key.Hex()},
        {"tokens", std::vector<int32_t>(document.tokens.begin(), document.tokens.end())},
        {"loss_mask", std::vector<uint8_t>(document.loss_mask.begin(), document.loss_mask.end())},
        {"domain", plan->domains()[document.domain]},
        {"chunk", document.chunk},
        {"held_out", held_out}};
    uint64_t seed = d;
    for (const SectionSpec& spec : held_out ? job.held_out_sections : job.sections) {
      PutItem item{Encode(spec, document, seed += 10, &described["sections"]),
                   {job.teacher, job.plan, document.chunk, spec, "test"}};
      SH_CHECK_OK(store->Put({std::move(item)}));
    }
    documents.push_back(std::move(described));
  }
  SH_CHECK_OK(ExportJob(*store, job.name, JoinPath(folder, "export"), {.file_bytes_max = 8 << 20}));
  SH_CHECK_OK(WriteFileAtomically(JoinPath(folder, "expected.json"), documents.dump()));
  return 0;
}

}  // namespace
}  // namespace stillhouse

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fputs("usage: write_export FOLDER\n", stderr);
    return 2;
  }
  return stillhouse::Main(argv[1]);
}

#include "coordinator/ctl/cache_verbs.h"

#include <sys/stat.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "common/command_line.h"
#include "common/file.h"
#include "common/log.h"
#include "common/status.h"
#include "common/tensor_view.h"
#include "coordinator/ctl/cache_session.h"
#include "coordinator/ctl/cache_transfer_verbs.h"
#include "coordinator/ctl/output.h"
#include "dataset/plan.h"
#include "storage/codec.h"
#include "storage/codec/top_tokens.h"
#include "storage/service/cache_client.h"
#include "storage/subsumption.h"

namespace stillhouse {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kListPage = 1000;

struct CacheOptions {
  CacheChoice choice;
  OutputFormat format = OutputFormat::kTable;
  std::string job;
  std::string prefix;
  std::string object;
  std::string section;
  int64_t document = -1;
  bool raw = false;
  std::string out;
};
using Options = std::shared_ptr<CacheOptions>;

void Print(const Json& json, const Table& table, OutputFormat format) {
  PrintText(format == OutputFormat::kTable ? RenderTable(table) : Render(json, format));
}

absl::StatusOr<int> Ls(const CacheOptions& options) {
  SH_ASSIGN_OR_RETURN(const auto cache, OpenCacheSession(options.choice));
  Json json = Json::array();
  Table table{{"NAME", "BYTES"}, {}};
  for (std::string after;;) {
    SH_ASSIGN_OR_RETURN(const auto found, cache->List(options.prefix, after, kListPage));
    for (const ObjectInfo& object : found) {
      json.push_back({{"name", object.name}, {"bytes", object.size}});
      table.rows.push_back({object.name, HumanBytes(object.size)});
    }
    if (std::ssize(found) < kListPage) break;
    after = found.back().name;
  }
  Print({{"objects", json}}, table, options.format);
  return kExitOk;
}

absl::StatusOr<int> Stat(const CacheOptions& options) {
  SH_ASSIGN_OR_RETURN(const auto cache, OpenCacheSession(options.choice));
  SH_ASSIGN_OR_RETURN(const CacheStat stat, cache->Stat());
  Json specs = Json::array();
  Table table{{"SECTION", "DOCUMENTS", "PARTS", "ROWS", "BYTES", "BYTES/ROW"}, {}};
  for (const auto& [spec, totals] : stat.specs) {
    const uint64_t bytes = totals.record_bytes + totals.index_bytes;
    const double per_row = totals.rows == 0 ? 0 : static_cast<double>(bytes) / totals.rows;
    specs.push_back({{"section", spec},
                     {"documents", totals.sections},
                     {"parts", totals.parts},
                     {"rows", totals.rows},
                     {"payload_bytes", totals.payload_bytes},
                     {"record_bytes", totals.record_bytes},
                     {"index_bytes", totals.index_bytes},
                     {"bytes_per_row", per_row}});
    table.rows.push_back({spec, absl::StrCat(totals.sections), absl::StrCat(totals.parts),
                          absl::StrCat(totals.rows), HumanBytes(bytes),
                          absl::StrCat(static_cast<int64_t>(per_row * 10) / 10.0)});
  }
  const Json json = {{"store_id", stat.identity.store_id},
                     {"incarnation", stat.identity.incarnation},
                     {"sections", stat.all.sections},
                     {"parts", stat.all.parts},
                     {"payload_bytes", stat.all.payload_bytes},
                     {"record_bytes", stat.all.record_bytes},
                     {"index_bytes", stat.all.index_bytes},
                     {"objects", stat.objects},
                     {"object_bytes", stat.object_bytes},
                     {"segments", stat.space.segments},
                     {"dead_bytes", stat.space.dead_bytes},
                     {"bytes", stat.UsedBytes()},
                     {"specs", specs}};
  if (options.format == OutputFormat::kTable) {
    PrintText(absl::StrCat("store ", stat.identity.store_id, ", incarnation ",
                           stat.identity.incarnation, ", ", stat.objects, " objects of ",
                           HumanBytes(stat.object_bytes), "; ", HumanBytes(stat.UsedBytes()),
                           " in all, ", HumanBytes(stat.space.dead_bytes),
                           " of it removed and not given back yet\n"));
  }
  Print(json, table, options.format);
  return kExitOk;
}

absl::StatusOr<int> DigestVerb(const CacheOptions& options) {
  SH_ASSIGN_OR_RETURN(const auto cache, OpenCacheSession(options.choice));
  SH_ASSIGN_OR_RETURN(const JobDigest digest, cache->DigestOfJob(options.job));
  if (digest.missing > 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(digest.missing, " of the ", digest.sections, " sections of ", options.job,
                     " are not captured yet; the digest exists once all are"));
  }
  const Json json = {
      {"job", options.job}, {"digest", digest.digest.Hex()}, {"sections", digest.sections}};
  // A bare line, for comparing and for scripts.
  PrintText(options.format == OutputFormat::kTable ? absl::StrCat(digest.digest.Hex(), "\n")
                                                   : Render(json, options.format));
  return kExitOk;
}

Json ShareJson(const UsageShare& share) {
  const uint64_t bytes = share.record_bytes + share.index_bytes;
  return {{"documents", share.documents},
          {"rows", share.rows},
          {"sections", share.sections},
          {"missing", share.missing},
          {"record_bytes", share.record_bytes},
          {"index_bytes", share.index_bytes},
          {"bytes", bytes},
          {"bytes_per_row", share.rows == 0 ? 0.0 : static_cast<double>(bytes) / share.rows}};
}

absl::StatusOr<int> Du(const CacheOptions& options) {
  SH_ASSIGN_OR_RETURN(const auto cache, OpenCacheSession(options.choice));
  SH_ASSIGN_OR_RETURN(const JobUsage usage, cache->UsageOfJob(options.job));
  SH_ASSIGN_OR_RETURN(const CacheStat stat, cache->Stat());
  const Json json = {{"job", options.job},
                     {"training", ShareJson(usage.training)},
                     {"held_out", ShareJson(usage.held_out)},
                     {"artefact_bytes", usage.artefact_bytes},
                     {"plan_bytes", usage.plan_bytes},
                     {"cache_bytes", stat.UsedBytes()},
                     {"cache_dead_bytes", stat.space.dead_bytes}};
  Table table{{"WHAT", "DOCUMENTS", "ROWS", "MISSING", "BYTES", "BYTES/ROW"}, {}};
  const auto add = [&table](const char* what, const UsageShare& share) {
    const uint64_t bytes = share.record_bytes + share.index_bytes;
    const double per_row = share.rows == 0 ? 0 : static_cast<double>(bytes) / share.rows;
    table.rows.push_back({what, absl::StrCat(share.documents), absl::StrCat(share.rows),
                          absl::StrCat(share.missing), HumanBytes(bytes),
                          absl::StrCat(static_cast<int64_t>(per_row * 10) / 10.0)});
  };
  add("training", usage.training);
  add("held out", usage.held_out);
  table.rows.push_back({"artefacts", "", "", "", HumanBytes(usage.artefact_bytes), ""});
  table.rows.push_back({"plan", "", "", "", HumanBytes(usage.plan_bytes), ""});
  table.rows.push_back({"whole cache", "", "", "", HumanBytes(stat.UsedBytes()), ""});
  table.rows.push_back(
      {"removed, not given back", "", "", "", HumanBytes(stat.space.dead_bytes), ""});
  Print(json, table, options.format);
  return kExitOk;
}

absl::Status WriteOut(const CacheOptions& options, absl::string_view bytes) {
  if (options.out.empty()) {
    PrintText(bytes);
    return absl::OkStatus();
  }
  // What is renamed into place would replace a device.
  struct stat info {};
  if (lstat(options.out.c_str(), &info) == 0 && !S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--out ", options.out, ": not a regular file; without --out it goes to standard output"));
  }
  return WriteFileAtomically(options.out, bytes);
}

// Of a document's sections the one of that name, or one that serves the canonical name given.
absl::StatusOr<ServedSection> SectionNamed(const std::vector<SectionSpec>& specs,
                                           const std::string& name) {
  std::string known;
  for (const SectionSpec& spec : specs) {
    if (spec.Name() == name) return ServedSection{spec, spec};
    absl::StrAppend(&known, known.empty() ? "" : ", ", spec.Canonical());
  }
  if (const auto want = ParseSectionSpec(name); want.ok()) {
    const auto served = ResolveSections(specs, {*want});
    if (served.ok()) return served->front();
  }
  return absl::NotFoundError(
      absl::StrCat("this document has no section '", name, "'; it has: ", known));
}

void AppendJson(const StatsRows& rows, Json* json) {
  const auto append = [json](const char* name, const auto& values) {
    for (const auto value : values) (*json)[name].push_back(value);
  };
  append("entropy", rows.entropy);
  append("logsumexp", rows.logsumexp);
  append("top1_id", rows.top1_id);
  append("top1_logprob", rows.top1_logprob);
  append("next_logprob", rows.next_logprob);
}

// Of ids and what goes with each of them, those of one row.
template <typename T>
std::vector<T> OfRow(const std::vector<T>& values, const std::vector<uint32_t>& offsets,
                     size_t row) {
  return {values.begin() + offsets[row], values.begin() + offsets[row + 1]};
}

void AppendJson(const SampledRows& rows, Json* json) {
  for (size_t row = 0; row < rows.rows(); ++row) {
    (*json)["ids"].push_back(OfRow(rows.ids, rows.offsets, row));
    (*json)["counts"].push_back(OfRow(rows.counts, rows.offsets, row));
  }
}

void AppendJson(const TopTokenRows& rows, Json* json) {
  for (size_t row = 0; row < rows.rows(); ++row) {
    std::vector<float> values = LogProbabilities(rows, row);
    (*json)["ids"].push_back(OfRow(rows.ids, rows.offsets, row));
    (*json)["residual_logprob"].push_back(values.back());
    values.pop_back();
    (*json)["logprobs"].push_back(std::move(values));
  }
}

void AppendJson(const HiddenRows& rows, Json* json) {
  for (size_t row = 0; row < rows.rows(); ++row) {
    Json values = Json::array();
    for (uint32_t i = 0; i < rows.hidden_size; ++i) {
      values.push_back(Bf16ToFloat(rows.values[row * rows.hidden_size + i]));
    }
    (*json)["values"].push_back(std::move(values));
  }
}

absl::StatusOr<int> GetSection(const CacheOptions& options, CacheSession& cache) {
  SH_ASSIGN_OR_RETURN(const auto job_bytes, cache.GetObject(JobObjectName(options.job)));
  SH_ASSIGN_OR_RETURN(const JobObject job, ParseJobObject(*job_bytes));
  SH_ASSIGN_OR_RETURN(auto plan_bytes, cache.GetObject(PlanObjectName(job.plan)));
  SH_ASSIGN_OR_RETURN(const auto plan, ParsePlan(std::move(plan_bytes)));
  if (options.document < 0 || options.document >= plan->document_count()) {
    return absl::NotFoundError(absl::StrCat("no document ", options.document, "; ", options.job,
                                            " has documents 0 to ", plan->document_count() - 1));
  }
  const PlanDocument document = plan->document(static_cast<uint32_t>(options.document));
  const bool held_out = plan->chunk(document.chunk).held_out;
  SH_ASSIGN_OR_RETURN(
      const ServedSection served,
      SectionNamed(held_out ? job.held_out_sections : job.sections, options.section));
  const SectionSpec& spec = served.have;
  const Digest key = SectionKey(job.teacher, document.key, spec);
  SH_ASSIGN_OR_RETURN(const auto parts, cache.GetParts(PartKeysOf(key, spec, document.rows())));
  SectionRows rows = NoRows(spec);
  for (const std::optional<Part>& part : parts) {
    if (!part.has_value()) {
      return absl::NotFoundError(
          absl::StrCat(spec.Name(), " of document ", options.document, " is not captured yet"));
    }
    SH_RETURN_IF_ERROR(DecodeSection(spec, part->payload, part->row_count, kVocabularyMax, &rows));
  }
  rows = AsWanted(served, std::move(rows));
  if (options.raw) {
    SH_ASSIGN_OR_RETURN(const std::string values, CanonicalValues(rows));
    SH_RETURN_IF_ERROR(WriteOut(options, values));
    return kExitOk;
  }
  Json json = {{"job", job.name},
               {"document", options.document},
               {"document_key", document.key.Hex()},
               {"section", served.want.Canonical()},
               {"section_key", key.Hex()},
               {"rows", document.rows()}};
  if (served.have != served.want) json["served_by"] = served.have.Canonical();
  std::visit([&json](const auto& values) { AppendJson(values, &json); }, rows);
  SH_RETURN_IF_ERROR(WriteOut(options, json.dump() + "\n"));
  return kExitOk;
}

absl::StatusOr<int> Get(const CacheOptions& options) {
  const bool section = !options.job.empty();
  if (section == !options.object.empty() ||
      (section && (options.section.empty() || options.document < 0))) {
    return absl::InvalidArgumentError(
        "say what: JOB --document N --section NAME, or --object NAME");
  }
  SH_ASSIGN_OR_RETURN(const auto cache, OpenCacheSession(options.choice));
  if (section) return GetSection(options, *cache);
  SH_ASSIGN_OR_RETURN(const auto bytes, cache->GetObject(options.object));
  SH_RETURN_IF_ERROR(WriteOut(options, *bytes));
  return kExitOk;
}

using Verb = absl::StatusOr<int> (*)(const CacheOptions&);

Command AddVerb(Command cache, ChosenVerb& chosen, const char* name, const char* what, Verb verb,
                const Options& options) {
  Command added = cache.AddCommand(name, what);
  AddCacheOptions(added, &options->choice);
  added.OnParsed([options, verb, &chosen] { chosen = [options, verb] { return verb(*options); }; });
  return added;
}

}  // namespace

void AddCacheVerb(Command app, ChosenVerb& chosen) {
  Command cache = app.AddCommand("cache", "Look into a cache");
  cache.RequireCommand();
  auto options = std::make_shared<CacheOptions>();

  Command ls = AddVerb(cache, chosen, "ls", "List plans, artefacts and jobs", Ls, options);
  ls.AddOption("PREFIX", &options->prefix, "only names that begin so: job/, artefact/, sha256/");
  AddOutputOption(ls, &options->format);
  ls.SetFooter(
      "Examples:\n  coordinatorctl cache ls --dir cache\n"
      "  coordinatorctl cache ls job/ --dir cache -o json\n");

  Command stat =
      AddVerb(cache, chosen, "stat", "What is stored, by kind of section", Stat, options);
  AddOutputOption(stat, &options->format);
  stat.SetFooter("Example:\n  coordinatorctl cache stat --dir cache\n");

  Command get =
      AddVerb(cache, chosen, "get", "Write a section of a document, or an object", Get, options);
  get.AddOption("JOB", &options->job, "job whose plan numbers the documents");
  get.AddOption("--document", &options->document, "number of the document in the plan");
  get.AddOption("--section", &options->section,
                "stats, logits/sampled, hidden/last, …, or a canonical name, as logits/topk?k=32");
  get.AddOption("--object", &options->object, "an object by its name");
  get.AddFlag("--raw", &options->raw, "canonical values as bytes (docs/formats.md), not JSON");
  get.AddOption("--out", &options->out, "file to write; default: standard output");
  get.SetFooter(
      "Examples:\n  coordinatorctl cache get handbook --document 3 --section stats --dir cache\n"
      "  coordinatorctl cache get --object job/handbook --dir cache\n");

  AddCacheTrustVerbs(cache, chosen);
  AddCacheAuditVerb(cache, chosen);

  Command digest = AddVerb(cache, chosen, "digest", "One hash over all that a job captured",
                           DigestVerb, options);
  digest.AddOption("JOB", &options->job, "job").Required();
  AddOutputOption(digest, &options->format);
  digest.SetFooter("Example:\n  coordinatorctl cache digest handbook --dir cache\n");

  Command du = AddVerb(cache, chosen, "du", "What a job takes", Du, options);
  du.AddOption("JOB,--job", &options->job, "job").Required();
  AddOutputOption(du, &options->format);
  du.SetFooter("Example:\n  coordinatorctl cache du --job handbook --dir cache -o json\n");

  AddCacheTransferVerbs(cache, chosen);
  AddCacheSpaceVerbs(cache, chosen);
}

}  // namespace stillhouse

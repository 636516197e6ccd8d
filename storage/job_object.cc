#include "storage/job_object.h"

#include <nlohmann/json.hpp>

#include "common/status.h"

namespace stillhouse {
namespace {

using Json = nlohmann::json;

constexpr int kJobFormat = 1;
constexpr size_t kJobBytesMax = 1 << 20;
constexpr size_t kSectionsMax = 1000;

absl::Status Malformed(absl::string_view what) {
  return absl::DataLossError(absl::StrCat("malformed job object: ", what));
}

absl::Status ReadDigest(const Json& json, const char* key, Digest* digest) {
  const auto it = json.find(key);
  if (it == json.end() || !it->is_string()) return Malformed(absl::StrCat(key, " is missing"));
  const absl::StatusOr<Digest> parsed = DigestFromHex(it->get_ref<const std::string&>());
  if (!parsed.ok()) return Malformed(absl::StrCat(key, ": ", parsed.status().message()));
  *digest = *parsed;
  return absl::OkStatus();
}

absl::Status ReadSections(const Json& json, const char* key, std::vector<SectionSpec>* specs) {
  const auto it = json.find(key);
  if (it == json.end() || !it->is_array() || it->size() > kSectionsMax) {
    return Malformed(absl::StrCat(key, " is no list of sections"));
  }
  for (const Json& entry : *it) {
    if (!entry.is_string()) return Malformed(absl::StrCat(key, " is no list of sections"));
    const absl::StatusOr<SectionSpec> spec = ParseSectionSpec(entry.get_ref<const std::string&>());
    if (!spec.ok()) return Malformed(absl::StrCat(key, ": ", spec.status().message()));
    specs->push_back(*spec);
  }
  return absl::OkStatus();
}

Json WriteSections(const std::vector<SectionSpec>& specs) {
  Json list = Json::array();
  for (const SectionSpec& spec : specs) list.push_back(spec.Canonical());
  return list;
}

}  // namespace

std::string EncodeJobObject(const JobObject& job) {
  Json json;
  json["format"] = kJobFormat;
  json["name"] = job.name;
  json["plan"] = job.plan.Hex();
  json["teacher"] = job.teacher.Hex();
  json["sections"] = WriteSections(job.sections);
  json["held_out_sections"] = WriteSections(job.held_out_sections);
  return json.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

absl::StatusOr<JobObject> ParseJobObject(absl::string_view bytes) {
  if (bytes.size() > kJobBytesMax) return Malformed("it is larger than 1 MiB");
  const Json json =
      Json::parse(bytes.begin(), bytes.end(), /*cb=*/nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return Malformed("it is no JSON object");
  const auto format = json.find("format");
  if (format == json.end() || *format != kJobFormat) {
    return Malformed("its format is not the one that this program reads");
  }
  JobObject job;
  const auto name = json.find("name");
  if (name == json.end() || !name->is_string()) return Malformed("name is missing");
  job.name = name->get<std::string>();
  SH_RETURN_IF_ERROR(ReadDigest(json, "plan", &job.plan));
  SH_RETURN_IF_ERROR(ReadDigest(json, "teacher", &job.teacher));
  SH_RETURN_IF_ERROR(ReadSections(json, "sections", &job.sections));
  SH_RETURN_IF_ERROR(ReadSections(json, "held_out_sections", &job.held_out_sections));
  return job;
}

}  // namespace stillhouse

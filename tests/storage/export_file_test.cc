#include "storage/export_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "common/file.h"
#include "common/status.h"
#include "storage/export_manifest.h"
#include "tests/storage/section_fixtures.h"

namespace stillhouse {
namespace {

using testing::HasSubstr;

const std::vector<std::string> kSpecs = {"logits/sampled?draws=50", "stats"};

std::string Write(const std::vector<ExportPart>& parts) {
  std::string file;
  ExportFileWriter writer(kSpecs, [&file](absl::string_view bytes) {
    file.append(bytes.data(), bytes.size());
    return absl::OkStatus();
  });
  for (const ExportPart& part : parts) {
    SH_CHECK_OK(writer.Add(part.part, part.spec));
  }
  SH_CHECK_OK(writer.Finish());
  return file;
}

absl::StatusOr<std::vector<ExportPart>> Read(absl::string_view file) {
  SH_ASSIGN_OR_RETURN(
      const auto reader,
      ExportFileReader::Open(file.size(), [file](uint64_t offset, size_t size, char* out) {
        SH_CHECK(offset <= file.size() && size <= file.size() - offset, offset, " + ", size);
        std::memcpy(out, file.data() + offset, size);
        return absl::OkStatus();
      }));
  std::vector<ExportPart> parts;
  for (;;) {
    SH_ASSIGN_OR_RETURN(auto part, reader->Next());
    if (!part.has_value()) return parts;
    parts.push_back(*std::move(part));
  }
}

// Payloads are as good as any: what they mean is not this file's business.
std::vector<ExportPart> SomeParts() {
  std::vector<ExportPart> parts;
  for (uint32_t d = 0; d < 3; ++d) {
    for (uint32_t spec = 0; spec < 2; ++spec) {
      const Digest section = Sha256Of(absl::StrCat("section ", d, " ", spec));
      parts.push_back(
          {{{section, 0}, 100 + d, absl::StrCat("\x04payload ", d, std::string(d, 'x'))}, spec});
      parts.push_back({{{section, 100 + d}, 7, std::string("\x01")}, spec});
    }
  }
  return parts;
}

TEST(ExportFileTest, PartsComeBackInTheOrderWritten) {
  const std::vector<ExportPart> parts = SomeParts();
  const auto read = *Read(Write(parts));
  ASSERT_EQ(read.size(), parts.size());
  for (size_t i = 0; i < parts.size(); ++i) {
    EXPECT_EQ(read[i].part, parts[i].part);
    EXPECT_EQ(read[i].spec, parts[i].spec);
  }
  EXPECT_TRUE(Read(Write({}))->empty());
}

TEST(ExportFileTest, BytesWithIsTheSizeOfTheWholeFile) {
  std::string file;
  ExportFileWriter writer(kSpecs, [&file](absl::string_view bytes) {
    file.append(bytes.data(), bytes.size());
    return absl::OkStatus();
  });
  uint64_t expected = 0;
  for (const ExportPart& part : SomeParts()) {
    expected = writer.BytesWith(part.part.payload.size());
    SH_CHECK_OK(writer.Add(part.part, part.spec));
  }
  SH_CHECK_OK(writer.Finish());
  EXPECT_EQ(file.size(), expected);
}

TEST(ExportFileTest, TheBytesOfVersion1StayAsTheyAre) {
  const std::string golden = *ReadFile(SH_TEST_SOURCE_DIR "/tests/storage/export_file_v1.golden");
  EXPECT_EQ(Read(golden)->size(), SomeParts().size());
  EXPECT_EQ(Write(SomeParts()), golden);
}

TEST(ExportFileTest, EveryCutAndEveryFlippedBitIsFound) {
  const std::string file = Write(SomeParts());
  for (size_t size = 0; size < file.size(); ++size) {
    ASSERT_EQ(Read(absl::string_view(file).substr(0, size)).status().code(),
              absl::StatusCode::kDataLoss)
        << size;
  }
  for (size_t i = 0; i < file.size(); ++i) {
    std::string flipped = file;
    flipped[i] ^= static_cast<char>(1 << i % 8);
    ASSERT_EQ(Read(flipped).status().code(), absl::StatusCode::kDataLoss) << i;
  }
  EXPECT_FALSE(Read(file + std::string(8, '\0')).ok());
}

// With checksums made right again, as somebody who means harm would.
std::string Reseal(std::string file) {
  constexpr size_t kFooter = 40;
  uint32_t header_bytes = 0;
  uint64_t index_offset = 0;
  std::memcpy(&header_bytes, &file[12], sizeof(header_bytes));
  std::memcpy(&index_offset, &file[file.size() - kFooter], sizeof(index_offset));
  Xxh3Stream checksum;
  checksum.Add(absl::string_view(file).substr(0, header_bytes));
  checksum.Add(absl::string_view(file).substr(index_offset, file.size() - 16 - index_offset));
  const uint64_t sum = checksum.Finish();
  std::memcpy(&file[file.size() - 16], &sum, sizeof(sum));
  return file;
}

TEST(ExportFileTest, AnIndexThatIsNotWhatThePartsGiveIsRefused) {
  const std::string file = Write(SomeParts());
  ASSERT_EQ(Reseal(file), file);
  uint64_t index = 0;
  std::memcpy(&index, &file[file.size() - 40], sizeof(index));
  const auto refusal = [](const std::string& bytes) {
    return std::string(Read(bytes).status().message());
  };
  // Section key, row_begin, row_count, offset, record_bytes, spec of the first entry.
  for (const size_t field : {0, 32, 36, 40, 48, 52}) {
    std::string changed = file;
    changed[index + field] ^= 1;
    EXPECT_THAT(refusal(Reseal(changed)), HasSubstr("index names other parts")) << field;
  }
  std::string overlapping = file;  // the second entry is the first once more
  overlapping.replace(index + 56, 56, file, index, 56);
  EXPECT_THAT(refusal(Reseal(overlapping)), HasSubstr("index names other parts"));

  std::string huge = file;
  const uint64_t records = uint64_t{1} << 60;
  std::memcpy(&huge[huge.size() - 32], &records, sizeof(records));
  EXPECT_THAT(refusal(Reseal(huge)), HasSubstr("another size than it states"));
  EXPECT_THAT(refusal(Write({SomeParts()[0], SomeParts()[0]})), HasSubstr("a part twice"));
}

ExportManifest SomeManifest() {
  return {.job = {"test",
                  Sha256Of("plan"),
                  TestTeacher(),
                  {SectionSpec{}, SampledSpec()},
                  {SectionSpec{}, HiddenSpec(8)}},
          .documents = 3,
          .sections = 6,
          .rows = 60,
          .digest = Sha256Of("digest"),
          .plan = {100, Sha256Of("plan")},
          .artefacts = {{"lm_head/bf16", {7, Sha256Of("a")}}, {"tokenizer", {8, Sha256Of("b")}}},
          .files = {{1 << 20, Sha256Of("0")}, {2048, Sha256Of("1")}}};
}

TEST(ExportManifestTest, ComesBack) {
  const std::string text = EncodeExportManifest(SomeManifest());
  const ExportManifest read = *ParseExportManifest(text);
  EXPECT_EQ(read.job, SomeManifest().job);
  EXPECT_EQ(read.artefacts[1].artefact, "tokenizer");
  EXPECT_EQ(EncodeExportManifest(read), text);
  EXPECT_EQ(ExportSpecs(read.job), (std::vector<std::string>{"hidden/last?hidden_size=8&dtype=bf16",
                                                             "logits/sampled?draws=50", "stats"}));
}

TEST(ExportManifestTest, TheTextOfVersion1StaysAsItIs) {
  EXPECT_EQ(EncodeExportManifest(SomeManifest()),
            *ReadFile(SH_TEST_SOURCE_DIR "/tests/storage/export_manifest_v1.golden"));
}

TEST(ExportManifestTest, WhatIsNotOursIsRefused) {
  const std::string text = EncodeExportManifest(SomeManifest());
  const auto with = [&text](const std::string& from, const std::string& to) {
    std::string changed = text;
    const size_t at = changed.find(from);
    SH_CHECK(at != std::string::npos, from);
    changed.replace(at, from.size(), to);
    const auto parsed = ParseExportManifest(changed);
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kDataLoss) << changed;
    EXPECT_EQ(parsed.status().message().find('\n'), absl::string_view::npos);
    return std::string(parsed.status().message());
  };
  EXPECT_THAT(with("\"version\": 1", "\"version\": 2"), HasSubstr("version 2; this program reads"));
  EXPECT_THAT(with("\"plan.bin\"", "\"../plan.bin\""), HasSubstr("not written as this version"));
  EXPECT_THAT(with("sections-000001.bin", "/etc/passwd"), HasSubstr("not written as"));
  EXPECT_THAT(with("\"bytes\": 2048", "\"bytes\": 18446744073709551615"), HasSubstr("bytes"));
  EXPECT_THAT(with("\"bytes\": 2048", "\"bytes\": -1"), HasSubstr("bytes"));
  EXPECT_THAT(with("\"bytes\": 2048", "\"bytes\": 2e3"), HasSubstr("bytes"));
  EXPECT_THAT(with("\"name\": \"test\"", "\"name\": \"../test\""), HasSubstr("the job's name"));
  EXPECT_THAT(with("lm_head/bf16", "z"), HasSubstr("not in order"));
  EXPECT_THAT(with("lm_head/bf16", "a\\nb"), HasSubstr("has no name"));
  EXPECT_THAT(with("logits/sampled?draws=50", "logits/sampled?draws=0"), HasSubstr("no section"));
  EXPECT_THAT(with("\"format\": 1", "\"format\": 1, \"x\": 2"), HasSubstr("not written as"));
  EXPECT_THAT(with("{\n", "{\n  \"documents\": 3,\n"), HasSubstr("not written as"));
  EXPECT_THAT(with("\"format\": 1",
                   "\"format\": " + std::string(100000, '[') + "1" + std::string(100000, ']')),
              HasSubstr("no job object"));
  EXPECT_FALSE(ParseExportManifest("").ok());
  EXPECT_FALSE(ParseExportManifest("[]").ok());
  EXPECT_FALSE(ParseExportManifest(text + " ").ok());
}

}  // namespace
}  // namespace stillhouse

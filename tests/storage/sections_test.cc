#include "storage/sections.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "storage/subsumption.h"
#include "tests/storage/section_fixtures.h"

namespace stillhouse {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

SectionSpec Spec(const std::string& text) {
  const auto spec = ParseSectionSpec(text);
  SH_CHECK_OK(spec);
  return *spec;
}

TEST(SectionSpecTest, CanonicalTextsParseBack) {
  for (const char* text :
       {"stats", "logits/sampled?draws=1", "logits/sampled?draws=50", "logits/sampled?draws=65535",
        "logits/topk?k=1", "logits/topk?k=64", "logits/topk?k=65536",
        "logits/topp?p=0.95&k_max=100", "logits/topp?p=0.000001&k_max=1",
        "logits/topp?p=0.999999&k_max=65536", "hidden/last?hidden_size=576&dtype=bf16",
        "hidden/last?hidden_size=1048576&dtype=int8", "hidden/0?hidden_size=1&dtype=bf16",
        "hidden/9999?hidden_size=576&dtype=int8"}) {
    const auto spec = ParseSectionSpec(text);
    ASSERT_TRUE(spec.ok()) << text;
    EXPECT_EQ(spec->Canonical(), text);
    EXPECT_TRUE(std::string(text).starts_with(spec->Name()));
  }
}

TEST(SectionSpecTest, FieldsAreThoseOfTheText) {
  EXPECT_EQ(Spec("logits/sampled?draws=50"),
            (SectionSpec{.kind = SectionKind::kLogitsSampled, .draws = 50}));
  EXPECT_EQ(Spec("logits/topk?k=64"), (SectionSpec{.kind = SectionKind::kLogitsTopK, .k = 64}));
  EXPECT_EQ(Spec("logits/topp?p=0.95&k_max=100"),
            (SectionSpec{.kind = SectionKind::kLogitsTopP, .k = 100, .p_millionths = 950'000}));
  EXPECT_EQ(Spec("hidden/last?hidden_size=576&dtype=bf16"),
            (SectionSpec{.kind = SectionKind::kHiddenLast, .hidden_size = 576}));
  EXPECT_EQ(Spec("hidden/12?hidden_size=576&dtype=int8"),
            (SectionSpec{.kind = SectionKind::kHiddenLayer,
                         .hidden_size = 576,
                         .layer = 12,
                         .dtype = HiddenDtype::kInt8}));
}

// One text for one section: anything else would give a second key to the same values.
TEST(SectionSpecTest, OtherTextsAreRefused) {
  for (const std::string bad : {"",
                                "stats?",
                                "stats ",
                                "Stats",
                                "logits",
                                "logits/sampled",
                                "logits/sampled?draws=0",
                                "logits/sampled?draws=050",
                                "logits/sampled?draws=65536",
                                "logits/sampled?draws=5 ",
                                "logits/sampled?draws=+5",
                                "logits/sampled?draws=99999999999999999999",
                                "logits/topk",
                                "logits/topk?k=",
                                "logits/topk?k=0",
                                "logits/topk?k=064",
                                "logits/topk?k=65537",
                                "logits/topk?k=64&k=64",
                                "logits/topk?k=64&k_max=64",
                                "logits/topp?p=0.95",
                                "logits/topp?p=0.950&k_max=9",
                                "logits/topp?p=.95&k_max=9",
                                "logits/topp?p=0&k_max=9",
                                "logits/topp?p=0.&k_max=9",
                                "logits/topp?p=0.0&k_max=9",
                                "logits/topp?p=1&k_max=9",
                                "logits/topp?p=1.0&k_max=9",
                                "logits/topp?p=0.0000001&k_max=9",
                                "logits/topp?p=9.5e-1&k_max=9",
                                "logits/topp?p=0.9 &k_max=9",
                                "logits/topp?p=-0.9&k_max=9",
                                "logits/topp?p=0.95&k_max=0",
                                "logits/topp?k_max=100&p=0.95",
                                "hidden/",
                                "hidden/last",
                                "hidden/last?hidden_size=576",
                                "hidden/last?hidden_size=0&dtype=bf16",
                                "hidden/last?hidden_size=1048577&dtype=bf16",
                                "hidden/last?hidden_size=-1&dtype=bf16",
                                "hidden/last?dtype=bf16&hidden_size=576",
                                "hidden/last?hidden_size=576&dtype=",
                                "hidden/last?hidden_size=576&dtype=f32",
                                "hidden/last?hidden_size=576&dtype=bf16&",
                                "hidden/00?hidden_size=576&dtype=bf16",
                                "hidden/01?hidden_size=576&dtype=bf16",
                                "hidden/-1?hidden_size=576&dtype=bf16",
                                "hidden/10000?hidden_size=576&dtype=bf16",
                                "hidden/?hidden_size=576&dtype=bf16",
                                "hidden/first?hidden_size=576&dtype=bf16"}) {
    EXPECT_EQ(ParseSectionSpec(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
  const absl::Status status = ParseSectionSpec(std::string("a\nb\0", 4)).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("'a\\nb\\x00' is no section"));
}

TEST(SectionSpecTest, PartsAreAtMostFourMebibytesPlain) {
  EXPECT_EQ(SectionSpec{}.RowsPerPart(), kPartBytesMax / 20);
  EXPECT_EQ(Spec("logits/topk?k=64").RowsPerPart(), kPartBytesMax / 520);
  EXPECT_EQ(Spec("logits/topp?p=0.9&k_max=100").RowsPerPart(), kPartBytesMax / 808);
  for (const char* which : {"last", "12"}) {
    for (const char* dtype : {"bf16", "int8"}) {
      const auto spec = Spec(absl::StrCat("hidden/", which, "?hidden_size=8192&dtype=", dtype));
      EXPECT_EQ(spec.RowsPerPart(), 256u);
    }
  }
  for (const char* text :
       {"logits/sampled?draws=65535", "logits/topk?k=65536", "logits/topp?p=0.5&k_max=65536",
        "hidden/last?hidden_size=1048576&dtype=bf16"}) {
    EXPECT_GE(Spec(text).RowsPerPart(), 2u) << text;
  }
}

TEST(SubsumptionTest, OnlyMoreOfTheMostLikelyIdsServeFewer) {
  const char* const texts[] = {"stats",
                               "logits/sampled?draws=25",
                               "logits/sampled?draws=50",
                               "logits/topk?k=32",
                               "logits/topk?k=64",
                               "logits/topp?p=0.9&k_max=64",
                               "logits/topp?p=0.95&k_max=64",
                               "hidden/last?hidden_size=576&dtype=bf16",
                               "hidden/last?hidden_size=576&dtype=int8",
                               "hidden/12?hidden_size=576&dtype=bf16",
                               "hidden/13?hidden_size=576&dtype=bf16"};
  for (const char* have : texts) {
    for (const char* want : texts) {
      const bool more = absl::string_view(have) == "logits/topk?k=64" &&
                        absl::string_view(want) == "logits/topk?k=32";
      EXPECT_EQ(Serves(Spec(have), Spec(want)), have == want || more) << have << " " << want;
    }
  }
}

TEST(SubsumptionTest, TheStoredSectionOfFewestBytesServes) {
  const std::vector<SectionSpec> stored = {Spec("logits/topk?k=128"), Spec("stats"),
                                           Spec("logits/topk?k=64"), Spec("logits/topk?k=16")};
  const auto served =
      ResolveSections(stored, {Spec("logits/topk?k=32"), Spec("stats"), Spec("logits/topk?k=64")});
  SH_CHECK_OK(served);
  EXPECT_THAT(*served,
              ElementsAre(ServedSection{Spec("logits/topk?k=32"), Spec("logits/topk?k=64")},
                          ServedSection{Spec("stats"), Spec("stats")},
                          ServedSection{Spec("logits/topk?k=64"), Spec("logits/topk?k=64")}));
  // The order of what is stored does not matter.
  const std::vector<SectionSpec> reversed(stored.rbegin(), stored.rend());
  EXPECT_EQ(*ResolveSections(reversed, {Spec("logits/topk?k=17")}),
            *ResolveSections(stored, {Spec("logits/topk?k=17")}));
}

TEST(SubsumptionTest, WhatNothingServesIsNamed) {
  const absl::Status status =
      ResolveSections({Spec("stats"), Spec("logits/topk?k=64")}, {Spec("logits/topk?k=65")})
          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(status.message(),
            "no section serves logits/topk?k=65; there are: stats, logits/topk?k=64");
  EXPECT_EQ(ResolveSections({}, {Spec("stats")}).status().message(),
            "no section serves stats; there are: none");
}

TEST(SubsumptionTest, ServedRowsAreThoseThatWouldHaveBeenCaptured) {
  const ServedSection served{Spec("logits/topk?k=32"), Spec("logits/topk?k=64")};
  const SectionRows rows = AsWanted(served, MakeRows(served.have, 30, 5));
  const auto direct = std::get<TopTokenRows>(MakeRows(served.want, 30, 5));
  const auto& top = std::get<TopTokenRows>(rows);
  EXPECT_EQ(top.offsets, direct.offsets);
  EXPECT_EQ(top.ids, direct.ids);
  EXPECT_EQ(top.levels, direct.levels);
  // A payload of the wanted section like any other.
  SH_CHECK_OK(CanonicalValues(served.want, EncodeSection(served.want, rows, 0, 30), 30));
  const SectionSpec stats{};
  EXPECT_EQ(*CanonicalValues(AsWanted({stats, stats}, MakeRows(stats, 4, 1))),
            *CanonicalValues(MakeRows(stats, 4, 1)));
}

}  // namespace
}  // namespace stillhouse

// Recipes, and the envelope in front of every message.
#include "common/file.h"
#include "common/status.h"
#include "recipe/recipe.h"
#include "tests/fuzz/target.h"
#include "transport/rpc_envelope.h"

namespace stillhouse {
namespace {

FuzzTarget RecipeTarget() {
  const auto sample = ReadFile(SH_TEST_SOURCE_DIR "/tests/recipe/data/sample.yaml");
  SH_CHECK_OK(sample);
  return {"recipe",
          {*sample, "name: &a [*a]\n", "{{{{[[[[", "a: !!binary x\n? b\n: |\n  c\n"},
          [](absl::string_view input) {
            const auto recipe = ParseRecipe(input, "/nowhere/recipe.yaml");
            if (recipe.ok()) return;
            // A refusal is one line that begins with the file.
            SH_CHECK(!recipe.status().message().empty());
            SH_CHECK(recipe.status().message().find('\n') == absl::string_view::npos);
          }};
}

FuzzTarget EnvelopeTarget() {
  const std::string request = SerializeEnvelope({.protocol_min = 1,
                                                 .protocol_max = 1,
                                                 .request_id = 77,
                                                 .method = "cache.Put",
                                                 .status = absl::OkStatus(),
                                                 .incarnation = 5});
  const std::string answer = SerializeEnvelope({.protocol_min = 1,
                                                .protocol_max = 1,
                                                .request_id = 77,
                                                .method = "",
                                                .status = absl::NotFoundError("what is not there"),
                                                .incarnation = 5});
  return {"envelope", {request, answer}, [](absl::string_view input) {
            const auto envelope = ParseEnvelope(input);
            if (envelope.has_value()) (void)SerializeEnvelope(*envelope);
          }};
}

}  // namespace

std::vector<FuzzTarget> TextAndWireTargets() { return {RecipeTarget(), EnvelopeTarget()}; }

}  // namespace stillhouse

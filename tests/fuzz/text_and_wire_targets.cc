// Recipes, the envelope in front of every message, and both ends of a call.
#include <memory>
#include <utility>

#include "common/file.h"
#include "common/manual_executor.h"
#include "common/status.h"
#include "recipe/recipe.h"
#include "tests/fuzz/target.h"
#include "transport/memory_channel.h"
#include "transport/rpc.h"
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

constexpr char kFrameEnd = '\xfe';  // in the inputs of RpcTarget
constexpr size_t kFramesTried = 16;

Frames CutIntoFrames(absl::string_view bytes) {
  Frames frames;
  while (frames.size() < kFramesTried) {
    const size_t end = bytes.find(kFrameEnd);
    frames.emplace_back(std::string(bytes.substr(0, end)));
    if (end == absl::string_view::npos) break;
    bytes.remove_prefix(end + 1);
  }
  return frames;
}

// `frames` as a request to a server of ours, and as every answer that a client of ours gets.
void TryBothEnds(const Frames& frames) {
  ManualExecutor executor;
  MemoryNetwork network(executor);
  const std::unique_ptr<ServerChannel> ours = *network.MakeServer("ours");
  const std::unique_ptr<RpcServer> server = MakeRpcServer(*ours, executor);
  server->Handle("echo", [](const Peer&, RpcMessage request, RpcServer::Respond respond) {
    respond(std::move(request));
  });
  const std::unique_ptr<ClientChannel> hostile_client = network.MakeClient("ours");
  SH_CHECK_OK(hostile_client->Send(frames));
  executor.RunUntilIdle();

  const std::unique_ptr<ServerChannel> theirs = *network.MakeServer("theirs");
  theirs->SetReceiver(
      [&](const Peer& peer, Frames) { SH_CHECK_OK(theirs->Send(peer.connection, frames)); });
  const std::unique_ptr<ClientChannel> channel = network.MakeClient("theirs");
  const std::unique_ptr<RpcClient> client = MakeRpcClient(*channel, executor, {.incarnation = 5});
  int answers = 0;
  client->Call("echo", {}, {.deadline = absl::Seconds(5)}, [&](auto) { ++answers; });
  executor.Advance(absl::Seconds(6));
  SH_CHECK(answers == 1, "answered ", answers, " times");
}

FuzzTarget RpcTarget() {
  Envelope envelope{.protocol_min = 1,
                    .protocol_max = 1,
                    .request_id = 1,
                    .method = "echo",
                    .status = absl::OkStatus(),
                    .incarnation = 5};
  const std::string request = SerializeEnvelope(envelope);
  envelope.method.clear();
  const std::string answer = SerializeEnvelope(envelope);
  envelope.status = absl::AbortedError("no");
  const std::string refusal = SerializeEnvelope(envelope);
  return {"rpc",
          {request + "\xfe"
                     "body\xfe"
                     "attachment",
           answer + "\xfe"
                    "body",
           refusal},
          [](absl::string_view input) { TryBothEnds(CutIntoFrames(input)); }};
}

}  // namespace

std::vector<FuzzTarget> TextAndWireTargets() {
  return {RecipeTarget(), EnvelopeTarget(), RpcTarget()};
}

}  // namespace stillhouse

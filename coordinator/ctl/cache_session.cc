#include "coordinator/ctl/cache_session.h"

#include <limits>
#include <thread>

#include "common/blocking.h"
#include "common/event_loop.h"
#include "common/status.h"
#include "proto/cache.pb.h"
#include "recipe/recipe.h"
#include "storage/cache_directory.h"
#include "storage/service/cache_client.h"
#include "transport/rpc.h"
#include "transport/zmq_channel.h"

namespace stillhouse {
namespace {

// A server that lives answers at once; a whole digest or verification takes as long as it takes.
constexpr absl::Duration kFirstAnswer = absl::Seconds(10);

class LocalSession final : public CacheSession {
 public:
  explicit LocalSession(std::unique_ptr<CacheDirectory> directory)
      : directory_(std::move(directory)),
        admin_(directory_->sections(), directory_->objects(), plans_) {}

  absl::StatusOr<CacheStat> Stat() override { return admin_.Stat(); }
  absl::StatusOr<std::vector<ObjectInfo>> List(absl::string_view prefix, absl::string_view after,
                                               int limit) override {
    return admin_.List(prefix, after, limit);
  }
  absl::StatusOr<JobDigest> DigestOfJob(const std::string& job) override {
    return admin_.DigestOfJob(job);
  }
  absl::StatusOr<JobUsage> UsageOfJob(const std::string& job) override {
    return admin_.UsageOfJob(job);
  }
  absl::StatusOr<VerifyStep> Verify(const std::string& after) override {
    return admin_.Verify(after, kVerifyStepRecords);
  }
  absl::StatusOr<std::vector<std::string>> VerifyShares() override { return admin_.VerifyShares(); }
  absl::StatusOr<std::shared_ptr<const std::string>> GetObject(const std::string& name) override {
    return directory_->objects().Get(name);
  }
  absl::StatusOr<std::vector<std::optional<Part>>> GetParts(
      const std::vector<PartKey>& keys) override {
    return directory_->sections().Get(keys, std::numeric_limits<uint64_t>::max());
  }

 private:
  std::unique_ptr<CacheDirectory> directory_;
  PlanCache plans_;
  CacheAdmin admin_;
};

UsageShare ShareOf(const pb::DuResponse::Share& share) {
  return {share.documents(), share.rows(),         share.sections(),
          share.missing(),   share.record_bytes(), share.index_bytes()};
}

class RemoteSession final : public CacheSession {
 public:
  static absl::StatusOr<std::unique_ptr<CacheSession>> Connect(const std::string& address) {
    auto session = std::unique_ptr<RemoteSession>(new RemoteSession());
    SH_ASSIGN_OR_RETURN(session->channel_, MakeZmqClientChannel(session->loop_, address));
    session->rpc_ = MakeRpcClient(*session->channel_, session->loop_);
    session->client_ = MakeCacheClient(*session->rpc_);
    session->thread_ = std::thread([loop = &session->loop_] { loop->Run(); });
    // Is anybody there? Told apart from a question that takes long.
    const auto stat =
        session->Call<pb::StatResponse>("cache.Stat", pb::StatRequest(), kFirstAnswer);
    if (absl::IsDeadlineExceeded(stat.status())) {
      return absl::UnavailableError(absl::StrCat("no cache server answers at ", address));
    }
    SH_RETURN_IF_ERROR(stat.status());
    return session;
  }
  ~RemoteSession() override {
    loop_.Stop();
    if (thread_.joinable()) thread_.join();
  }

  absl::StatusOr<CacheStat> Stat() override;
  absl::StatusOr<std::vector<ObjectInfo>> List(absl::string_view prefix, absl::string_view after,
                                               int limit) override;
  absl::StatusOr<JobDigest> DigestOfJob(const std::string& job) override;
  absl::StatusOr<JobUsage> UsageOfJob(const std::string& job) override;
  absl::StatusOr<VerifyStep> Verify(const std::string& after) override;
  absl::StatusOr<std::vector<std::string>> VerifyShares() override;
  absl::StatusOr<std::shared_ptr<const std::string>> GetObject(const std::string& name) override {
    return CallAndWait<std::shared_ptr<const std::string>>(
        loop_, [&](auto done) { client_->GetObject(name, std::move(done)); });
  }
  absl::StatusOr<std::vector<std::optional<Part>>> GetParts(
      const std::vector<PartKey>& keys) override {
    return CallAndWait<std::vector<std::optional<Part>>>(
        loop_, [&](auto done) { client_->Get(keys, std::move(done)); });
  }

 private:
  RemoteSession() = default;

  template <typename Response, typename Request>
  absl::StatusOr<Response> Call(const std::string& method, const Request& request,
                                absl::Duration deadline = absl::InfiniteDuration()) {
    RpcMessage message;
    request.SerializeToString(&message.body);
    SH_ASSIGN_OR_RETURN(const RpcMessage answer, CallAndWait<RpcMessage>(loop_, [&](auto done) {
                          rpc_->Call(method, std::move(message), {.deadline = deadline},
                                     std::move(done));
                        }));
    Response response;
    if (!response.ParseFromString(answer.body)) {
      return absl::InternalError(absl::StrCat("the answer to ", method, " could not be read"));
    }
    return response;
  }

  EventLoop loop_;
  std::unique_ptr<ClientChannel> channel_;
  std::unique_ptr<RpcClient> rpc_;
  std::unique_ptr<CacheClient> client_;
  std::thread thread_;
};

absl::StatusOr<CacheStat> RemoteSession::Stat() {
  SH_ASSIGN_OR_RETURN(const auto response, Call<pb::StatResponse>("cache.Stat", pb::StatRequest()));
  CacheStat stat;
  stat.identity = {response.store_id(), response.incarnation()};
  stat.objects = response.objects();
  stat.object_bytes = response.object_bytes();
  for (const pb::StatResponse::PerSpec& spec : response.specs()) {
    stat.specs[spec.spec()] = {spec.sections(),     spec.parts(),         spec.rows(),
                               spec.record_bytes(), spec.payload_bytes(), spec.index_bytes()};
    stat.all.rows += spec.rows();
  }
  stat.all.sections = response.sections();
  stat.all.parts = response.parts();
  stat.all.record_bytes = response.record_bytes();
  stat.all.payload_bytes = response.payload_bytes();
  stat.all.index_bytes = response.index_bytes();
  return stat;
}

absl::StatusOr<std::vector<ObjectInfo>> RemoteSession::List(absl::string_view prefix,
                                                            absl::string_view after, int limit) {
  pb::LsRequest request;
  request.set_prefix(std::string(prefix));
  request.set_after(std::string(after));
  request.set_limit(limit);
  SH_ASSIGN_OR_RETURN(const auto response, Call<pb::LsResponse>("cache.Ls", request));
  std::vector<ObjectInfo> objects;
  for (const auto& object : response.objects()) objects.push_back({object.name(), object.size()});
  return objects;
}

absl::StatusOr<JobDigest> RemoteSession::DigestOfJob(const std::string& job) {
  pb::DigestRequest request;
  request.set_job(job);
  SH_ASSIGN_OR_RETURN(const auto response, Call<pb::DigestResponse>("cache.Digest", request));
  JobDigest digest;
  SH_ASSIGN_OR_RETURN(digest.digest, DigestFromBytes(response.digest()));
  digest.sections = response.sections();
  digest.missing = response.missing();
  return digest;
}

absl::StatusOr<JobUsage> RemoteSession::UsageOfJob(const std::string& job) {
  pb::DuRequest request;
  request.set_job(job);
  SH_ASSIGN_OR_RETURN(const auto response, Call<pb::DuResponse>("cache.Du", request));
  return JobUsage{ShareOf(response.training()), ShareOf(response.held_out()),
                  response.artefact_bytes(), response.plan_bytes()};
}

absl::StatusOr<VerifyStep> RemoteSession::Verify(const std::string& after) {
  pb::VerifyRequest request;
  request.set_after(after);
  request.set_limit(kVerifyStepRecords);
  SH_ASSIGN_OR_RETURN(const auto response, Call<pb::VerifyResponse>("cache.Verify", request));
  return VerifyStep{response.records(),
                    response.unreferenced(),
                    {response.problems().begin(), response.problems().end()},
                    response.next()};
}

absl::StatusOr<std::vector<std::string>> RemoteSession::VerifyShares() {
  pb::VerifyRequest request;
  request.set_shares(true);
  request.set_limit(1);
  SH_ASSIGN_OR_RETURN(const auto response, Call<pb::VerifyResponse>("cache.Verify", request));
  // A server that knows of no shares has answered with a step.
  if (response.shares().empty()) return std::vector<std::string>{""};
  return std::vector<std::string>(response.shares().begin(), response.shares().end());
}

absl::StatusOr<std::unique_ptr<CacheSession>> OpenDirectory(const std::string& path) {
  SH_ASSIGN_OR_RETURN(auto directory, CacheDirectory::Open({.path = path, .read_only = true}));
  return std::make_unique<LocalSession>(std::move(directory));
}

}  // namespace

absl::StatusOr<std::unique_ptr<CacheSession>> OpenCacheSession(const CacheChoice& choice) {
  const bool coordinator = !choice.coordinator.file.empty() || !choice.coordinator.recipe.empty();
  if (!choice.directory.empty() + !choice.server.empty() + coordinator > 1) {
    return absl::InvalidArgumentError(
        "choose one cache: --dir, --server, --coordinator or --recipe");
  }
  if (!choice.directory.empty()) return OpenDirectory(choice.directory);
  if (!choice.server.empty()) return RemoteSession::Connect(choice.server);
  const auto found = FindCoordinator(choice.coordinator);
  if (absl::IsUnavailable(found.status()) && !choice.coordinator.recipe.empty()) {
    SH_ASSIGN_OR_RETURN(const Recipe recipe, ReadRecipe(choice.coordinator.recipe));
    return OpenDirectory(recipe.cache_directory);
  }
  SH_RETURN_IF_ERROR(found.status());
  if (found->file.cache.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(found->path, ": names no cache server"));
  }
  return RemoteSession::Connect(found->file.cache);
}

}  // namespace stillhouse

#include "coordinator/ctl/cache_session.h"

#include <cstdio>
#include <limits>
#include <thread>

#include "common/blocking.h"
#include "common/event_loop.h"
#include "common/file.h"
#include "common/status.h"
#include "proto/cache.pb.h"
#include "recipe/recipe.h"
#include "storage/cache_directory.h"
#include "storage/service/cache_client.h"
#include "storage/service/space_wire.h"
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
        admin_(directory_->sections(), directory_->objects(), plans_),
        jobs_(MakeLocalJobStore(directory_->sections(), directory_->objects())) {}

  absl::StatusOr<CacheStat> Stat() override { return admin_.Stat(); }
  absl::StatusOr<VerifyStep> Verify(const std::string& after) override {
    return admin_.Verify(after, kVerifyStepRecords);
  }
  absl::StatusOr<std::vector<std::string>> VerifyShares() override { return admin_.VerifyShares(); }
  absl::Status Close() override { return directory_->Close(); }
  absl::StatusOr<std::vector<ObjectInfo>> List(absl::string_view prefix, absl::string_view after,
                                               int limit) override {
    return jobs_->List(prefix, after, limit);
  }
  absl::StatusOr<JobDigest> DigestOfJob(const std::string& job) override {
    return jobs_->DigestOfJob(job);
  }
  absl::StatusOr<JobUsage> UsageOfJob(const std::string& job) override {
    return jobs_->UsageOfJob(job);
  }
  absl::StatusOr<std::shared_ptr<const std::string>> GetObject(const std::string& name) override {
    return jobs_->GetObject(name);
  }
  absl::StatusOr<std::vector<std::optional<Part>>> GetParts(
      const std::vector<PartKey>& keys) override {
    return jobs_->GetParts(keys);
  }
  absl::Status PutObject(const std::string& name,
                         std::shared_ptr<const std::string> bytes) override {
    return jobs_->PutObject(name, std::move(bytes));
  }
  absl::StatusOr<std::vector<PutCounts>> Put(std::vector<PutItem> items) override {
    return jobs_->Put(std::move(items));
  }
  absl::StatusOr<SpaceResult> Space(const SpaceRequest& request) override {
    SpaceTask task(request, plans_);
    while (task.next() != SpaceTask::Next::kDone) {
      SH_RETURN_IF_ERROR(task.Step(directory_->sections(), directory_->objects()));
    }
    return task.result();
  }
  absl::Status Pin(const std::string& job) override { return PinJob(directory_->objects(), job); }
  absl::Status Unpin(const std::string& job) override {
    return UnpinJob(directory_->objects(), job);
  }

 private:
  std::unique_ptr<CacheDirectory> directory_;
  PlanCache plans_;
  CacheAdmin admin_;
  std::unique_ptr<JobStore> jobs_;
};

UsageShare ShareOf(const pb::DuResponse::Share& share) {
  return {share.documents(), share.rows(),         share.sections(),   share.missing(),
          share.damaged(),   share.record_bytes(), share.index_bytes()};
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
  absl::Status PutObject(const std::string& name,
                         std::shared_ptr<const std::string> bytes) override {
    return CallAndWait<StoreAck>(
               loop_,
               [&](auto done) { client_->PutObject(name, std::move(bytes), {}, std::move(done)); })
        .status();
  }
  absl::StatusOr<std::vector<PutCounts>> Put(std::vector<PutItem> items) override;
  absl::Status Close() override { return absl::OkStatus(); }
  absl::StatusOr<SpaceResult> Space(const SpaceRequest& request) override {
    pb::SpaceRequest message;
    ToProto(request, &message);
    SH_ASSIGN_OR_RETURN(const auto response, Call<pb::SpaceResponse>("cache.Space", message));
    return FromProto(response);
  }
  absl::Status Pin(const std::string& job) override { return ChangePin("cache.Pin", job); }
  absl::Status Unpin(const std::string& job) override { return ChangePin("cache.Unpin", job); }

 private:
  RemoteSession() = default;

  absl::Status ChangePin(const std::string& method, const std::string& job) {
    pb::PinRequest request;
    request.set_job(job);
    return Call<pb::PinResponse>(method, request).status();
  }

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
  stat.space = {.segments = response.segments(),
                .live_bytes = response.record_bytes(),
                .dead_bytes = response.dead_bytes(),
                .origin_bytes = response.origin_bytes()};
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

// All at once, so that the server stores them with few syncs.
absl::StatusOr<std::vector<PutCounts>> RemoteSession::Put(std::vector<PutItem> items) {
  struct Waiting {
    std::vector<PutCounts> counts;
    absl::Status status;
    size_t left = 0;
  };
  if (items.empty()) return std::vector<PutCounts>();
  const auto waiting = std::make_shared<Waiting>();
  waiting->counts.resize(items.size());
  waiting->left = items.size();
  return CallAndWait<std::vector<PutCounts>>(loop_, [&](auto done) {
    const auto told = std::make_shared<decltype(done)>(std::move(done));
    for (size_t i = 0; i < items.size(); ++i) {
      client_->Put(std::move(items[i].parts), std::move(items[i].provenance),
                   [waiting, told, i](absl::StatusOr<StoreAck> ack) {
                     if (ack.ok()) {
                       waiting->counts[i] = {ack->stored, ack->already, ack->mismatched};
                     } else {
                       waiting->status.Update(ack.status());
                     }
                     if (--waiting->left > 0) return;
                     if (!waiting->status.ok()) return (*told)(waiting->status);
                     (*told)(std::move(waiting->counts));
                   });
    }
  });
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

absl::StatusOr<std::unique_ptr<CacheSession>> OpenDirectory(const std::string& path,
                                                            CacheAccess access) {
  if (access == CacheAccess::kChange) SH_RETURN_IF_ERROR(CheckIsThere(path, path));
  SH_ASSIGN_OR_RETURN(
      auto directory,
      CacheDirectory::Open({.path = path, .read_only = access == CacheAccess::kRead}));
  return std::make_unique<LocalSession>(std::move(directory));
}

absl::Status CheckChoice(const CacheChoice& choice) {
  const bool coordinator = !choice.coordinator.file.empty() || !choice.coordinator.recipe.empty();
  if (!choice.directory.empty() + !choice.server.empty() + coordinator <= 1) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError("choose one cache: --dir, --server, --coordinator or --recipe");
}

// Nothing was named: the only live coordinator is meant.
bool IsGuess(const CacheChoice& choice) {
  return choice.directory.empty() && choice.server.empty() && choice.coordinator.file.empty() &&
         choice.coordinator.recipe.empty();
}

}  // namespace

void AddCacheOptions(Command verb, CacheChoice* choice) {
  verb.AddOption("--dir", &choice->directory, "cache directory that no server holds");
  verb.AddOption("--server", &choice->server, "address of a cache server");
  AddCoordinatorOptions(verb, &choice->coordinator);
}

absl::StatusOr<std::unique_ptr<CacheSession>> OpenCacheSession(const CacheChoice& choice,
                                                               CacheAccess access) {
  SH_RETURN_IF_ERROR(CheckChoice(choice));
  if (!choice.directory.empty()) return OpenDirectory(choice.directory, access);
  if (!choice.server.empty()) return RemoteSession::Connect(choice.server);
  const auto found = FindCoordinator(choice.coordinator);
  if (absl::IsUnavailable(found.status()) && !choice.coordinator.recipe.empty()) {
    SH_ASSIGN_OR_RETURN(const Recipe recipe, ReadRecipe(choice.coordinator.recipe));
    return OpenDirectory(recipe.cache_directory, access);
  }
  if (absl::IsUnavailable(found.status()) && IsGuess(choice)) {
    return absl::UnavailableError(
        "no coordinator of yours is alive; name the cache with --dir, or its recipe with --recipe");
  }
  SH_RETURN_IF_ERROR(found.status());
  if (access != CacheAccess::kRead && IsGuess(choice)) {
    std::fprintf(stderr, "the cache of the coordinator %s\n", found->path.c_str());
  }
  if (found->file.cache.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(found->path, ": names no cache server"));
  }
  return RemoteSession::Connect(found->file.cache);
}

absl::StatusOr<std::optional<Coordinator>> CoordinatorOf(const CacheChoice& choice) {
  SH_RETURN_IF_ERROR(CheckChoice(choice));
  if (!choice.directory.empty()) return std::nullopt;
  auto found = FindCoordinator(choice.coordinator);
  if (absl::IsUnavailable(found.status())) return std::nullopt;
  if (choice.server.empty()) {
    SH_RETURN_IF_ERROR(found.status());
    return *std::move(found);
  }
  // Only an address is known: it is a coordinator's if the only live one says so.
  if (!found.ok() || found->file.cache != choice.server) return std::nullopt;
  return *std::move(found);
}

}  // namespace stillhouse

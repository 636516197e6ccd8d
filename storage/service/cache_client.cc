#include "storage/service/cache_client.h"

#include <sys/random.h>

#include <utility>

#include "absl/strings/match.h"
#include "common/backoff.h"
#include "common/status.h"
#include "proto/cache.pb.h"
#include "storage/service/cache_wire.h"
#include "storage/teacher_cache.h"
#include "transport/rpc.h"

namespace stillhouse {
namespace {

constexpr size_t kGetKeysMax = 4096;     // of one message
constexpr int kUploadRestartsMax = 5;    // after a server forgot an upload (it was started again)
constexpr int kDownloadRestartsMax = 5;  // after an object was replaced between two pieces

uint64_t RandomNumber() {
  uint64_t value = 0;
  SH_CHECK(getrandom(&value, sizeof(value), 0) == sizeof(value), "no randomness");
  return value;
}

StoreAck FromProto(const pb::Ack& ack) {
  return {ack.store_id(), ack.incarnation(), ack.stored(), ack.already(), ack.mismatched()};
}

class CacheClientImpl final : public CacheClient {
 public:
  CacheClientImpl(RpcClient& rpc, const CacheClientOptions& options)
      : rpc_(rpc), options_(options), backoff_seed_(RandomNumber()) {}

  void Put(std::vector<Part> parts, Provenance provenance, Callback<StoreAck> done) override;
  void Get(std::vector<PartKey> keys, Callback<std::vector<std::optional<Part>>> done) override;
  void PutObject(std::string name, std::shared_ptr<const std::string> bytes,
                 PutObjectOptions options, Callback<StoreAck> done) override;
  void GetObject(std::string name, Callback<std::shared_ptr<const std::string>> done) override;
  void Inventory(InventoryRequest request, Callback<std::vector<bool>> done) override;

 private:
  struct Getting {
    std::vector<PartKey> keys;
    std::vector<std::optional<Part>> parts;
    Callback<std::vector<std::optional<Part>>> done;
    absl::Duration deadline;
  };
  struct Uploading {
    std::string name;
    std::shared_ptr<const std::string> bytes;
    PutObjectOptions options;
    Callback<StoreAck> done;
    absl::Duration deadline;
    uint64_t upload = 0;
    uint64_t offset = 0;
    int restarts = 0;
  };
  struct Downloading {
    std::string name;
    Callback<std::shared_ptr<const std::string>> done;
    absl::Duration deadline;
    std::string digest;
    std::shared_ptr<std::string> bytes;
    int restarts = 0;
  };
  struct Try {
    std::string method;
    RpcMessage request;
    absl::Duration deadline;  // on the executor's clock
    Backoff backoff;
    RpcClient::Done done;
  };

  absl::Duration Deadline() const { return rpc_.executor().clock().Now() + options_.deadline; }
  void CallUntil(absl::Duration deadline, std::string method, RpcMessage request,
                 RpcClient::Done done);
  void TryOnce(std::shared_ptr<Try> attempt);
  // `done(status)` on the executor, never inside the call that the user made.
  template <typename T>
  void Fail(Callback<T> done, absl::Status status) {
    rpc_.executor().Post(
        [done = std::move(done), status = std::move(status)]() mutable { done(status); });
  }
  void GetMore(std::shared_ptr<Getting> getting);
  absl::Status TakeParts(Getting& getting, RpcMessage message);
  void SendPiece(std::shared_ptr<Uploading> uploading);
  void AfterPiece(std::shared_ptr<Uploading> uploading, absl::StatusOr<RpcMessage> answer);
  void AskPiece(std::shared_ptr<Downloading> downloading);
  // True when the whole object is there.
  absl::StatusOr<bool> TakePiece(Downloading& downloading, const RpcMessage& message);

  RpcClient& rpc_;
  const CacheClientOptions options_;
  const uint64_t backoff_seed_;
  uint64_t calls_ = 0;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

void CacheClientImpl::CallUntil(absl::Duration deadline, std::string method, RpcMessage request,
                                RpcClient::Done done) {
  TryOnce(std::make_shared<Try>(Try{std::move(method), std::move(request), deadline,
                                    Backoff({.seed = backoff_seed_ ^ ++calls_}), std::move(done)}));
}

void CacheClientImpl::TryOnce(std::shared_ptr<Try> attempt) {
  const absl::Duration left = attempt->deadline - rpc_.executor().clock().Now();
  rpc_.Call(attempt->method, attempt->request, {.deadline = std::max(left, absl::ZeroDuration())},
            [this, attempt,
             alive = std::weak_ptr<bool>(alive_)](absl::StatusOr<RpcMessage> answer) mutable {
              if (alive.expired()) return;
              const absl::Duration pause = attempt->backoff.Next();
              const bool time_left = rpc_.executor().clock().Now() + pause < attempt->deadline;
              if (!absl::IsUnavailable(answer.status()) || !time_left) {
                attempt->done(std::move(answer));
                return;
              }
              rpc_.executor().PostAfter(pause, [this, attempt, alive] {
                if (!alive.expired()) TryOnce(attempt);
              });
            });
}

void CacheClientImpl::Put(std::vector<Part> parts, Provenance provenance, Callback<StoreAck> done) {
  pb::PutRequest request;
  std::vector<Frame> payloads;
  uint64_t bytes = 0;
  for (Part& part : parts) {
    pb::CachePart* described = request.add_parts();
    described->set_section(RawDigest(part.key.section));
    described->set_row_begin(part.key.row_begin);
    described->set_row_count(part.row_count);
    described->set_checksum(Xxh3(part.payload));
    bytes += part.payload.size();
    payloads.push_back(std::move(part.payload));
  }
  if (payloads.empty() || payloads.size() > kPutPartsMax || bytes > kPutBytesMax) {
    Fail<StoreAck>(std::move(done),
                   absl::InvalidArgumentError(
                       absl::StrCat("a put of ", payloads.size(), " parts and ", bytes, " bytes")));
    return;
  }
  request.set_spec(provenance.spec.Canonical());
  request.set_teacher(RawDigest(provenance.teacher));
  request.set_plan(RawDigest(provenance.plan));
  request.set_chunk(provenance.chunk);
  request.set_producer_class(provenance.producer_class);
  CallUntil(Deadline(), "cache.Put", MakeMessage(request, std::move(payloads)),
            [done = std::move(done)](absl::StatusOr<RpcMessage> answer) mutable {
              if (!answer.ok()) return done(answer.status());
              const auto response = ParseMessage<pb::PutResponse>(*answer);
              if (!response.ok()) return done(response.status());
              done(FromProto(response->ack()));
            });
}

void CacheClientImpl::Get(std::vector<PartKey> keys,
                          Callback<std::vector<std::optional<Part>>> done) {
  auto getting =
      std::make_shared<Getting>(Getting{std::move(keys), {}, std::move(done), Deadline()});
  if (getting->keys.empty()) {
    rpc_.executor().Post([getting] { getting->done(std::move(getting->parts)); });
    return;
  }
  GetMore(std::move(getting));
}

void CacheClientImpl::GetMore(std::shared_ptr<Getting> getting) {
  pb::CacheGetRequest request;
  for (size_t i = getting->parts.size();
       i < getting->keys.size() && request.keys_size() < static_cast<int>(kGetKeysMax); ++i) {
    pb::CachePart* key = request.add_keys();
    key->set_section(RawDigest(getting->keys[i].section));
    key->set_row_begin(getting->keys[i].row_begin);
  }
  const absl::Duration deadline = getting->deadline;
  CallUntil(deadline, "cache.Get", MakeMessage(request),
            [this, getting](absl::StatusOr<RpcMessage> answer) {
              if (!answer.ok()) return getting->done(answer.status());
              const absl::Status taken = TakeParts(*getting, *std::move(answer));
              if (!taken.ok()) return getting->done(taken);
              if (getting->parts.size() < getting->keys.size()) return GetMore(getting);
              getting->done(std::move(getting->parts));
            });
}

absl::Status CacheClientImpl::TakeParts(Getting& getting, RpcMessage message) {
  SH_ASSIGN_OR_RETURN(const auto response, ParseMessage<pb::CacheGetResponse>(message));
  const size_t asked = getting.keys.size() - getting.parts.size();
  if (response.parts_size() == 0 || static_cast<size_t>(response.parts_size()) > asked) {
    return absl::DataLossError("the cache answered another number of parts than it was asked for");
  }
  size_t attachment = 0;
  for (const pb::CachePart& described : response.parts()) {
    const PartKey& key = getting.keys[getting.parts.size()];
    if (described.section() != key.section.AsStringView() ||
        described.row_begin() != key.row_begin) {
      return absl::DataLossError("the cache answered another part than it was asked for");
    }
    if (!described.found()) {
      getting.parts.push_back(std::nullopt);
      continue;
    }
    if (attachment >= message.attachments.size()) {
      return absl::DataLossError("the cache's answer lacks a payload");
    }
    Frame payload = std::move(message.attachments[attachment++]);
    if (Xxh3(payload) != described.checksum()) {
      return absl::DataLossError(absl::StrCat("section ", key.section.ShortHex(), " row ",
                                              key.row_begin, " was damaged on its way"));
    }
    getting.parts.push_back(Part{key, described.row_count(), std::move(payload)});
  }
  return absl::OkStatus();
}

void CacheClientImpl::PutObject(std::string name, std::shared_ptr<const std::string> bytes,
                                PutObjectOptions options, Callback<StoreAck> done) {
  auto uploading = std::make_shared<Uploading>(
      Uploading{std::move(name), std::move(bytes), options, std::move(done), Deadline()});
  uploading->upload = RandomNumber();
  SendPiece(std::move(uploading));
}

void CacheClientImpl::SendPiece(std::shared_ptr<Uploading> uploading) {
  pb::PutObjectRequest request;
  request.set_name(uploading->name);
  request.set_size(uploading->bytes->size());
  request.set_offset(uploading->offset);
  request.set_replace(uploading->options.replace);
  request.set_upload(uploading->upload);
  const absl::string_view piece =
      absl::string_view(*uploading->bytes).substr(uploading->offset, kPartBytesMax);
  const absl::Duration deadline = uploading->deadline;
  CallUntil(deadline, "cache.PutObject", MakeMessage(request, {Frame(piece, uploading->bytes)}),
            [this, uploading](absl::StatusOr<RpcMessage> answer) {
              AfterPiece(uploading, std::move(answer));
            });
}

void CacheClientImpl::AfterPiece(std::shared_ptr<Uploading> uploading,
                                 absl::StatusOr<RpcMessage> answer) {
  if (absl::IsAborted(answer.status()) && ++uploading->restarts <= kUploadRestartsMax) {
    uploading->upload = RandomNumber();
    uploading->offset = 0;
    return SendPiece(std::move(uploading));
  }
  if (!answer.ok()) return uploading->done(answer.status());
  const auto response = ParseMessage<pb::PutObjectResponse>(*answer);
  if (!response.ok()) return uploading->done(response.status());
  if (response->complete()) return uploading->done(FromProto(response->ack()));
  uploading->offset += kPartBytesMax;
  if (uploading->offset >= uploading->bytes->size()) {
    return uploading->done(absl::InternalError(
        absl::StrCat(uploading->name, ": the cache took the last piece and wants more")));
  }
  // A long object may take longer than one call: what counts is that it gets on.
  uploading->deadline = Deadline();
  SendPiece(std::move(uploading));
}

void CacheClientImpl::GetObject(std::string name,
                                Callback<std::shared_ptr<const std::string>> done) {
  auto downloading =
      std::make_shared<Downloading>(Downloading{std::move(name), std::move(done), Deadline()});
  downloading->bytes = std::make_shared<std::string>();
  AskPiece(std::move(downloading));
}

void CacheClientImpl::AskPiece(std::shared_ptr<Downloading> downloading) {
  pb::GetObjectRequest request;
  request.set_name(downloading->name);
  request.set_offset(downloading->bytes->size());
  const absl::Duration deadline = downloading->deadline;
  CallUntil(deadline, "cache.GetObject", MakeMessage(request),
            [this, downloading](absl::StatusOr<RpcMessage> answer) {
              if (!answer.ok()) return downloading->done(answer.status());
              const absl::StatusOr<bool> whole = TakePiece(*downloading, *answer);
              if (!whole.ok()) return downloading->done(whole.status());
              if (*whole) return downloading->done(downloading->bytes);
              downloading->deadline = Deadline();
              AskPiece(downloading);
            });
}

absl::StatusOr<bool> CacheClientImpl::TakePiece(Downloading& downloading,
                                                const RpcMessage& message) {
  SH_ASSIGN_OR_RETURN(const auto response, ParseMessage<pb::GetObjectResponse>(message));
  std::string& bytes = *downloading.bytes;
  if (!bytes.empty() && downloading.digest != response.digest()) {
    // It was replaced since the last piece: begin again.
    if (++downloading.restarts > kDownloadRestartsMax) {
      return absl::AbortedError(absl::StrCat(downloading.name, " changes while it is read"));
    }
    bytes.clear();
    return false;
  }
  downloading.digest = response.digest();
  if (message.attachments.size() != 1 ||
      bytes.size() + message.attachments[0].size() > response.size() ||
      (message.attachments[0].empty() && response.size() != 0)) {
    return absl::DataLossError(absl::StrCat(downloading.name, ": a piece has another size"));
  }
  if (bytes.empty()) bytes.reserve(std::min<uint64_t>(response.size(), 1ull << 30));
  absl::StrAppend(&bytes, message.attachments[0].view());
  if (bytes.size() < response.size()) return false;
  if (Sha256Of(bytes).AsStringView() != downloading.digest) {
    return absl::DataLossError(
        absl::StrCat("the object ", downloading.name, " does not match its hash"));
  }
  return true;
}

void CacheClientImpl::Inventory(InventoryRequest request, Callback<std::vector<bool>> done) {
  pb::InventoryRequest message;
  message.set_plan(RawDigest(request.plan));
  message.set_teacher(RawDigest(request.teacher));
  for (const SectionSpec& spec : request.sections) message.add_sections(spec.Canonical());
  for (const SectionSpec& spec : request.held_out_sections) {
    message.add_held_out_sections(spec.Canonical());
  }
  for (const uint32_t chunk : request.chunks) message.add_chunks(chunk);
  for (const std::string& name : request.first_chunk_artefacts) {
    message.add_first_chunk_artefacts(name);
  }
  CallUntil(Deadline(), "cache.Inventory", MakeMessage(message),
            [asked = request.chunks.size(),
             done = std::move(done)](absl::StatusOr<RpcMessage> answer) mutable {
              if (!answer.ok()) return done(answer.status());
              const auto response = ParseMessage<pb::InventoryResponse>(*answer);
              if (!response.ok()) return done(response.status());
              if (asked != 0 && response->complete().size() != asked) {
                return done(absl::DataLossError("the inventory answers other chunks than asked"));
              }
              std::vector<bool> complete;
              for (const char byte : response->complete()) complete.push_back(byte == 1);
              done(std::move(complete));
            });
}

}  // namespace

std::string PlanObjectName(const Digest& plan) { return absl::StrCat("sha256/", plan.Hex()); }
std::string ArtefactObjectName(const Digest& teacher, absl::string_view name) {
  return absl::StrCat("artefact/", teacher.Hex(), "/", name);
}
std::string InfluenceArtefactName(const Digest& plan) {
  return absl::StrCat("influence/", plan.Hex());
}
std::string JobObjectName(absl::string_view job) {
  return absl::StartsWith(job, "job/") ? std::string(job) : absl::StrCat("job/", job);
}

std::unique_ptr<CacheClient> MakeCacheClient(RpcClient& rpc, const CacheClientOptions& options) {
  return std::make_unique<CacheClientImpl>(rpc, options);
}

}  // namespace stillhouse

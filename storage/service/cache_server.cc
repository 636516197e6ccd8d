#include "storage/service/cache_server.h"

#include <deque>
#include <utility>

#include "common/status.h"
#include "proto/cache.pb.h"
#include "storage/cache_verify.h"
#include "storage/service/cache_admin.h"
#include "storage/service/cache_client.h"
#include "storage/service/cache_space.h"
#include "storage/service/cache_wire.h"
#include "storage/service/job_scan.h"
#include "storage/service/space_wire.h"

namespace stillhouse {
namespace {

constexpr uint64_t kAnswerBytesMax = 16ull << 20;  // of payloads in one answer
constexpr int kKeysMax = 4096;                     // of one Get
constexpr uint32_t kLsMax = 1000;
constexpr size_t kSpaceCallsMax = 64;  // waiting: one works at a time

absl::StatusOr<PartKey> KeyOf(const pb::CachePart& part) {
  PartKey key;
  SH_ASSIGN_OR_RETURN(key.section, DigestFromBytes(part.section()));
  key.row_begin = part.row_begin();
  return key;
}

absl::StatusOr<std::vector<SectionSpec>> SpecsOf(
    const google::protobuf::RepeatedPtrField<std::string>& texts) {
  std::vector<SectionSpec> specs;
  for (const std::string& text : texts) {
    SH_ASSIGN_OR_RETURN(specs.emplace_back(), ParseSectionSpec(text));
  }
  return specs;
}

absl::StatusOr<PutItem> PutItemOf(RpcMessage message) {
  SH_ASSIGN_OR_RETURN(const auto request, ParseMessage<pb::PutRequest>(message));
  if (request.parts_size() != std::ssize(message.attachments)) {
    return absl::InvalidArgumentError("a put needs one payload for each part");
  }
  PutItem item;
  SH_ASSIGN_OR_RETURN(item.provenance.spec, ParseSectionSpec(request.spec()));
  SH_ASSIGN_OR_RETURN(item.provenance.teacher, DigestFromBytes(request.teacher()));
  SH_ASSIGN_OR_RETURN(item.provenance.plan, DigestFromBytes(request.plan()));
  item.provenance.chunk = request.chunk();
  item.provenance.producer_class = request.producer_class();
  for (int i = 0; i < request.parts_size(); ++i) {
    SH_ASSIGN_OR_RETURN(const PartKey key, KeyOf(request.parts(i)));
    Frame payload = std::move(message.attachments[i]);
    if (Xxh3(payload) != request.parts(i).checksum()) {
      return absl::UnavailableError("a payload was damaged on its way; send it again");
    }
    item.parts.push_back({key, request.parts(i).row_count(), std::move(payload)});
  }
  return item;
}

class CacheServerImpl final : public CacheServer {
 public:
  CacheServerImpl(RpcServer& rpc, AsyncStore& store, const CacheIdentity& identity,
                  const Options& options)
      : rpc_(rpc), store_(store), identity_(identity), options_(options) {
    rpc_.Handle("cache.Put", Bind(&CacheServerImpl::Put));
    rpc_.Handle("cache.Get", Bind(&CacheServerImpl::Get));
    rpc_.Handle("cache.PutObject", Bind(&CacheServerImpl::PutObject));
    rpc_.Handle("cache.GetObject", Bind(&CacheServerImpl::GetObject));
    rpc_.Handle("cache.Inventory", Bind(&CacheServerImpl::Inventory));
    rpc_.Handle("cache.Ls", Bind(&CacheServerImpl::Ls));
    rpc_.Handle("cache.Stat", Bind(&CacheServerImpl::Stat));
    rpc_.Handle("cache.Digest", Bind(&CacheServerImpl::DigestOfJob));
    rpc_.Handle("cache.Verify", Bind(&CacheServerImpl::Verify));
    rpc_.Handle("cache.Du", Bind(&CacheServerImpl::Du));
    rpc_.Handle("cache.Space", Bind(&CacheServerImpl::Space));
    rpc_.Handle("cache.Pin", Bind(&CacheServerImpl::Pin));
    rpc_.Handle("cache.Unpin", Bind(&CacheServerImpl::Unpin));
  }

 private:
  using Respond = RpcServer::Respond;
  using Method = void (CacheServerImpl::*)(RpcMessage, Respond);

  RpcServer::Handler Bind(Method method) {
    return [this, method](const Peer&, RpcMessage message, Respond respond) {
      (this->*method)(std::move(message), std::move(respond));
    };
  }

  pb::Ack AckOf(const PutCounts& counts) const {
    pb::Ack ack;
    ack.set_store_id(identity_.store_id);
    ack.set_incarnation(identity_.incarnation);
    ack.set_stored(counts.stored);
    ack.set_already(counts.already);
    ack.set_mismatched(counts.mismatched);
    return ack;
  }

  // Runs `work(request, cache)` on a store thread and answers with the message that it gives.
  template <typename Request, typename Work>
  void Answer(RpcMessage message, Respond respond, Work work) {
    auto request = ParseMessage<Request>(message);
    if (!request.ok()) return respond(request.status());
    store_.Read<RpcMessage>(
        [this, request = *std::move(request), work](
            TeacherCache& sections, ObjectStore& objects) -> absl::StatusOr<RpcMessage> {
          CacheAdmin cache(sections, objects, plans_);
          return work(request, cache);
        },
        std::move(respond));
  }

  void Put(RpcMessage message, Respond respond);
  void Get(RpcMessage message, Respond respond);
  void PutObject(RpcMessage message, Respond respond);
  void GetObject(RpcMessage message, Respond respond);
  void Inventory(RpcMessage message, Respond respond);
  void Ls(RpcMessage message, Respond respond);
  void Stat(RpcMessage message, Respond respond);
  void DigestOfJob(RpcMessage message, Respond respond);
  void Verify(RpcMessage message, Respond respond);
  void Du(RpcMessage message, Respond respond);
  void Space(RpcMessage message, Respond respond);
  void Pin(RpcMessage message, Respond respond);
  void Unpin(RpcMessage message, Respond respond);
  void ChangePin(RpcMessage message, Respond respond,
                 absl::Status (*change)(ObjectStore&, const std::string&));
  // Runs the first of space_tasks_, one step after another; puts go between.
  void StepSpace();

  struct SpaceCall {
    SpaceTask task;
    Respond respond;
  };
  RpcServer& rpc_;
  AsyncStore& store_;
  const CacheIdentity identity_;
  const Options options_;
  PlanCache plans_;             // used on store threads
  uint64_t pending_bytes_ = 0;  // of puts not yet answered
  std::deque<std::shared_ptr<SpaceCall>> space_calls_;
};

void CacheServerImpl::Put(RpcMessage message, Respond respond) {
  auto item = PutItemOf(std::move(message));
  if (!item.ok()) return respond(item.status());
  uint64_t bytes = 0;
  for (const Part& part : item->parts) bytes += part.payload.size();
  if (pending_bytes_ > 0 && pending_bytes_ + bytes > options_.pending_bytes_max) {
    return respond(absl::UnavailableError("the cache server is busy; try again"));
  }
  pending_bytes_ += bytes;
  store_.Put(*std::move(item),
             [this, bytes, respond = std::move(respond)](absl::StatusOr<PutCounts> counts) mutable {
               pending_bytes_ -= bytes;
               if (!counts.ok()) return respond(counts.status());
               pb::PutResponse response;
               *response.mutable_ack() = AckOf(*counts);
               respond(MakeMessage(response));
             });
}

void CacheServerImpl::Get(RpcMessage message, Respond respond) {
  const auto request = ParseMessage<pb::CacheGetRequest>(message);
  if (!request.ok()) return respond(request.status());
  if (request->keys_size() == 0 || request->keys_size() > kKeysMax) {
    return respond(absl::InvalidArgumentError(
        absl::StrCat("a get has 1 to ", kKeysMax, " keys, not ", request->keys_size())));
  }
  std::vector<PartKey> keys;
  for (const pb::CachePart& part : request->keys()) {
    const auto key = KeyOf(part);
    if (!key.ok()) return respond(key.status());
    keys.push_back(*key);
  }
  store_.Read<RpcMessage>(
      [keys = std::move(keys)](TeacherCache& sections, ObjectStore&) -> absl::StatusOr<RpcMessage> {
        SH_ASSIGN_OR_RETURN(auto parts, sections.Get(keys, kAnswerBytesMax));
        pb::CacheGetResponse response;
        std::vector<Frame> payloads;
        for (size_t i = 0; i < parts.size(); ++i) {
          pb::CachePart* described = response.add_parts();
          described->set_section(RawDigest(keys[i].section));
          described->set_row_begin(keys[i].row_begin);
          if (!parts[i].has_value()) continue;
          described->set_found(true);
          described->set_row_count(parts[i]->row_count);
          described->set_checksum(Xxh3(parts[i]->payload));
          payloads.push_back(std::move(parts[i]->payload));
        }
        return MakeMessage(response, std::move(payloads));
      },
      std::move(respond));
}

void CacheServerImpl::PutObject(RpcMessage message, Respond respond) {
  const auto request = ParseMessage<pb::PutObjectRequest>(message);
  if (!request.ok()) return respond(request.status());
  if (message.attachments.size() != 1) {
    return respond(absl::InvalidArgumentError("one piece is attached to a request"));
  }
  ObjectPiece piece{request->name(),   request->size(),
                    request->offset(), request->replace(),
                    request->upload(), std::string(message.attachments[0].view())};
  store_.Write<ObjectProgress>(
      [piece = std::move(piece)](TeacherCache&,
                                 ObjectStore& objects) -> absl::StatusOr<ObjectProgress> {
        if (piece.bytes.size() == piece.size) {  // as every description of a job is sent
          SH_RETURN_IF_ERROR(CheckJobIsWhole(objects, piece.name, piece.bytes));
        }
        return objects.PutPiece(piece);
      },
      [this, respond = std::move(respond)](absl::StatusOr<ObjectProgress> progress) mutable {
        if (!progress.ok()) return respond(progress.status());
        pb::PutObjectResponse response;
        response.set_complete(progress->complete);
        if (progress->complete) {
          PutCounts counts;
          ++(progress->already ? counts.already : counts.stored);
          *response.mutable_ack() = AckOf(counts);
        }
        respond(MakeMessage(response));
      });
}

void CacheServerImpl::GetObject(RpcMessage message, Respond respond) {
  const auto request = ParseMessage<pb::GetObjectRequest>(message);
  if (!request.ok()) return respond(request.status());
  store_.Read<RpcMessage>(
      [request = *request](TeacherCache&, ObjectStore& objects) -> absl::StatusOr<RpcMessage> {
        SH_ASSIGN_OR_RETURN(const ObjectHeader header, objects.Stat(request.name()));
        SH_ASSIGN_OR_RETURN_AT(std::string piece, objects.GetPiece(header, request.offset()),
                               request.name());
        pb::GetObjectResponse response;
        response.set_size(header.size);
        response.set_digest(RawDigest(header.digest));
        return MakeMessage(response, {std::move(piece)});
      },
      std::move(respond));
}

void CacheServerImpl::Inventory(RpcMessage message, Respond respond) {
  Answer<pb::InventoryRequest>(
      std::move(message), std::move(respond),
      [](const pb::InventoryRequest& request, CacheAdmin& cache) -> absl::StatusOr<RpcMessage> {
        InventoryQuery query;
        SH_ASSIGN_OR_RETURN(const Digest plan, DigestFromBytes(request.plan()));
        SH_ASSIGN_OR_RETURN(query.teacher, DigestFromBytes(request.teacher()));
        SH_ASSIGN_OR_RETURN(query.sections, SpecsOf(request.sections()));
        SH_ASSIGN_OR_RETURN(query.held_out_sections, SpecsOf(request.held_out_sections()));
        query.chunks.assign(request.chunks().begin(), request.chunks().end());
        query.first_chunk_artefacts.assign(request.first_chunk_artefacts().begin(),
                                           request.first_chunk_artefacts().end());
        SH_ASSIGN_OR_RETURN(const std::vector<bool> complete, cache.Inventory(plan, query));
        pb::InventoryResponse response;
        for (const bool whole : complete) response.mutable_complete()->push_back(whole ? 1 : 0);
        return MakeMessage(response);
      });
}

void CacheServerImpl::Ls(RpcMessage message, Respond respond) {
  Answer<pb::LsRequest>(
      std::move(message), std::move(respond),
      [](const pb::LsRequest& request, CacheAdmin& cache) -> absl::StatusOr<RpcMessage> {
        const uint32_t limit =
            request.limit() == 0 || request.limit() > kLsMax ? kLsMax : request.limit();
        SH_ASSIGN_OR_RETURN(const auto objects,
                            cache.List(request.prefix(), request.after(), static_cast<int>(limit)));
        pb::LsResponse response;
        for (const ObjectInfo& object : objects) {
          pb::LsResponse::Object* listed = response.add_objects();
          listed->set_name(object.name);
          listed->set_size(object.size);
        }
        response.set_more(objects.size() == limit);
        return MakeMessage(response);
      });
}

void CacheServerImpl::Stat(RpcMessage message, Respond respond) {
  Answer<pb::StatRequest>(
      std::move(message), std::move(respond),
      [](const pb::StatRequest&, CacheAdmin& cache) -> absl::StatusOr<RpcMessage> {
        SH_ASSIGN_OR_RETURN(const CacheStat stat, cache.Stat());
        pb::StatResponse response;
        response.set_store_id(stat.identity.store_id);
        response.set_incarnation(stat.identity.incarnation);
        response.set_sections(stat.all.sections);
        response.set_parts(stat.all.parts);
        response.set_payload_bytes(stat.all.payload_bytes);
        response.set_record_bytes(stat.all.record_bytes);
        response.set_index_bytes(stat.all.index_bytes);
        response.set_object_bytes(stat.object_bytes);
        response.set_objects(stat.objects);
        response.set_segments(stat.space.segments);
        response.set_dead_bytes(stat.space.dead_bytes);
        response.set_origin_bytes(stat.space.origin_bytes);
        for (const auto& [spec, totals] : stat.specs) {
          pb::StatResponse::PerSpec* listed = response.add_specs();
          listed->set_spec(spec);
          listed->set_sections(totals.sections);
          listed->set_parts(totals.parts);
          listed->set_rows(totals.rows);
          listed->set_record_bytes(totals.record_bytes);
          listed->set_payload_bytes(totals.payload_bytes);
          listed->set_index_bytes(totals.index_bytes);
        }
        return MakeMessage(response);
      });
}

void CacheServerImpl::DigestOfJob(RpcMessage message, Respond respond) {
  Answer<pb::DigestRequest>(
      std::move(message), std::move(respond),
      [](const pb::DigestRequest& request, CacheAdmin& cache) -> absl::StatusOr<RpcMessage> {
        SH_ASSIGN_OR_RETURN(const JobDigest digest, cache.DigestOfJob(request.job()));
        pb::DigestResponse response;
        response.set_digest(RawDigest(digest.digest));
        response.set_sections(digest.sections);
        response.set_missing(digest.missing);
        return MakeMessage(response);
      });
}

void CacheServerImpl::Verify(RpcMessage message, Respond respond) {
  Answer<pb::VerifyRequest>(
      std::move(message), std::move(respond),
      [](const pb::VerifyRequest& request, CacheAdmin& cache) -> absl::StatusOr<RpcMessage> {
        pb::VerifyResponse response;
        if (request.shares()) {
          SH_ASSIGN_OR_RETURN(const std::vector<std::string> shares, cache.VerifyShares());
          for (const std::string& share : shares) response.add_shares(share);
          return MakeMessage(response);
        }
        const int limit = static_cast<int>(std::min<uint32_t>(request.limit(), kVerifyStepRecords));
        SH_ASSIGN_OR_RETURN(const VerifyStep step, cache.Verify(request.after(), limit));
        response.set_records(step.records);
        for (const std::string& problem : step.problems) response.add_problems(problem);
        response.set_next(step.next);
        response.set_unreferenced(step.unreferenced);
        return MakeMessage(response);
      });
}

void CacheServerImpl::Du(RpcMessage message, Respond respond) {
  Answer<pb::DuRequest>(
      std::move(message), std::move(respond),
      [](const pb::DuRequest& request, CacheAdmin& cache) -> absl::StatusOr<RpcMessage> {
        SH_ASSIGN_OR_RETURN(const JobUsage usage, cache.UsageOfJob(request.job()));
        pb::DuResponse response;
        const auto copy = [](const UsageShare& share, pb::DuResponse::Share* out) {
          out->set_documents(share.documents);
          out->set_rows(share.rows);
          out->set_sections(share.sections);
          out->set_missing(share.missing);
          out->set_damaged(share.damaged);
          out->set_record_bytes(share.record_bytes);
          out->set_index_bytes(share.index_bytes);
        };
        copy(usage.training, response.mutable_training());
        copy(usage.held_out, response.mutable_held_out());
        response.set_artefact_bytes(usage.artefact_bytes);
        response.set_plan_bytes(usage.plan_bytes);
        return MakeMessage(response);
      });
}

void CacheServerImpl::Space(RpcMessage message, Respond respond) {
  const auto parsed = ParseMessage<pb::SpaceRequest>(message);
  if (!parsed.ok()) return respond(parsed.status());
  auto request = FromProto(*parsed);
  if (!request.ok()) return respond(request.status());
  if (space_calls_.size() >= kSpaceCallsMax) {
    return respond(absl::UnavailableError("the cache server is busy giving space back; try again"));
  }
  space_calls_.push_back(std::make_shared<SpaceCall>(
      SpaceCall{SpaceTask(*std::move(request), plans_), std::move(respond)}));
  if (space_calls_.size() == 1) StepSpace();
}

void CacheServerImpl::StepSpace() {
  const std::shared_ptr<SpaceCall> call = space_calls_.front();
  const auto step = [call](TeacherCache& sections, ObjectStore& objects) -> absl::StatusOr<bool> {
    SH_RETURN_IF_ERROR(call->task.Step(sections, objects));
    return true;
  };
  const auto done = [this, call](absl::StatusOr<bool> stepped) {
    if (stepped.ok() && call->task.next() != SpaceTask::Next::kDone) return StepSpace();
    if (stepped.ok()) {
      pb::SpaceResponse response;
      ToProto(call->task.result(), &response);
      call->respond(MakeMessage(response));
    } else {
      call->respond(stepped.status());
    }
    space_calls_.pop_front();
    if (!space_calls_.empty()) StepSpace();
  };
  if (call->task.next() == SpaceTask::Next::kRead) {
    store_.Read<bool>(step, done);
  } else {
    store_.Write<bool>(step, done);
  }
}

void CacheServerImpl::Pin(RpcMessage message, Respond respond) {
  ChangePin(std::move(message), std::move(respond), PinJob);
}

void CacheServerImpl::Unpin(RpcMessage message, Respond respond) {
  ChangePin(std::move(message), std::move(respond), UnpinJob);
}

void CacheServerImpl::ChangePin(RpcMessage message, Respond respond,
                                absl::Status (*change)(ObjectStore&, const std::string&)) {
  const auto request = ParseMessage<pb::PinRequest>(message);
  if (!request.ok()) return respond(request.status());
  store_.Write<RpcMessage>(
      [job = request->job(), change](TeacherCache&,
                                     ObjectStore& objects) -> absl::StatusOr<RpcMessage> {
        SH_RETURN_IF_ERROR(change(objects, job));
        return MakeMessage(pb::PinResponse());
      },
      std::move(respond));
}

}  // namespace

std::unique_ptr<CacheServer> MakeCacheServer(RpcServer& rpc, AsyncStore& store,
                                             const CacheIdentity& identity,
                                             const CacheServer::Options& options) {
  return std::make_unique<CacheServerImpl>(rpc, store, identity, options);
}

}  // namespace stillhouse

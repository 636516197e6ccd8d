#include "dataset/plan_format.h"

#include "common/byte_io.h"
#include "common/status.h"

namespace stillhouse {

PlanLayout LayOutPlan(const PlanHeader& header) {
  SH_CHECK(header.tokens < 1ull << 40);
  const uint64_t documents = header.documents, chunks = header.chunks;
  PlanLayout layout;
  layout.keys = kPlanHeaderBytes;
  layout.token_offsets = layout.keys + documents * 32;
  layout.document_domains = layout.token_offsets + (documents + 1) * 8;
  layout.chunk_begins = layout.document_domains + documents * 4;
  layout.chunk_batches = layout.chunk_begins + (chunks + 1) * 4;
  layout.batches = layout.chunk_batches + (chunks + 1) * 4;
  layout.domain_ends = layout.batches + header.batches * 12ull;
  layout.tokens = layout.domain_ends + header.domains * 4ull;
  layout.loss_mask = layout.tokens + header.tokens * 4;
  layout.domain_names = layout.loss_mask + header.tokens;
  layout.checksum = (layout.domain_names + header.domain_bytes + 7) / 8 * 8;
  layout.file_bytes = layout.checksum + 8;
  return layout;
}

std::string EncodePlanHeader(const PlanHeader& header) {
  ByteWriter out;
  out.PutRaw(absl::string_view(kPlanMagic, 8));
  out.Put<uint32_t>(kPlanVersion);
  out.Put<uint32_t>(header.vocabulary);
  out.Put<uint64_t>(header.file_bytes);
  out.PutDigest(header.tokenizer);
  for (const uint32_t field :
       {header.max_tokens, header.shuffle_window, header.documents, header.chunks,
        header.training_chunks, header.batches, header.domains, header.domain_bytes}) {
    out.Put<uint32_t>(field);
  }
  out.Put<uint64_t>(header.tokens);
  out.Put<uint64_t>(header.seed);
  out.Put<uint64_t>(0);
  SH_CHECK(out.size() == kPlanHeaderBytes);
  return out.Take();
}

absl::StatusOr<PlanHeader> DecodePlanHeader(absl::string_view bytes) {
  ByteReader in(bytes);
  absl::string_view magic;
  uint32_t version = 0;
  uint64_t reserved = 0;
  if (!in.GetRaw(8, &magic) || magic != absl::string_view(kPlanMagic, 8)) {
    return absl::DataLossError("not a plan file");
  }
  if (in.Get(&version) && version != kPlanVersion) {
    return absl::UnimplementedError(
        absl::StrCat("plan version ", version, "; this program reads version ", kPlanVersion));
  }
  PlanHeader header;
  in.Get(&header.vocabulary);
  in.Get(&header.file_bytes);
  in.GetDigest(&header.tokenizer);
  for (uint32_t* field :
       {&header.max_tokens, &header.shuffle_window, &header.documents, &header.chunks,
        &header.training_chunks, &header.batches, &header.domains, &header.domain_bytes}) {
    in.Get(field);
  }
  in.Get(&header.tokens);
  in.Get(&header.seed);
  in.Get(&reserved);
  if (!in.ok()) return absl::DataLossError("plan file cut short in its header");
  if (reserved != 0) return absl::DataLossError("plan header: reserved bytes are not zero");
  return header;
}

Digest DocumentKey(const Digest& tokenizer, const int32_t* ids, size_t count) {
  return Sha256()
      .AddField("stillhouse document v1")
      .AddDigest(tokenizer)
      .AddField("positions from 0")
      .AddU64(count)
      .AddRaw(ids, count * sizeof(int32_t))
      .Finish();
}

}  // namespace stillhouse

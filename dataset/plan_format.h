// The bytes of a plan file, version 1 (docs/formats.md). Little endian; every array lies at a
// multiple of its element's size, so that the file can be used where it is mapped.
//
//   header                       kPlanHeaderBytes, the fields of PlanHeader in order
//   document keys                documents x 32 bytes
//   token offsets                (documents + 1) x u64, from 0 to tokens
//   document domains             documents x u32
//   chunk begins                 (chunks + 1) x u32, documents
//   chunk batches                (chunks + 1) x u32, batches
//   batches                      batches x {u32 begin, u32 end, u32 length}
//   domain ends                  domains x u32, into the names
//   tokens                       tokens x i32
//   loss mask                    tokens x u8, 0 or 1
//   domain names                 domain_bytes, UTF-8
//   zeros                        to a multiple of 8
//   checksum                     u64, XXH3-64 of everything before it
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "common/digest.h"

namespace stillhouse {

inline constexpr char kPlanMagic[9] = "SHPLAN\r\n";
inline constexpr uint32_t kPlanVersion = 1;
inline constexpr uint64_t kPlanHeaderBytes = 112;
inline constexpr uint32_t kPlanDomainsMax = 10'000;
inline constexpr uint32_t kPlanDomainNameBytesMax = 256;

struct PlanHeader {
  // magic (8 bytes) and version (u32) stand first
  uint32_t vocabulary = 0;
  uint64_t file_bytes = 0;
  Digest tokenizer;
  uint32_t max_tokens = 0;
  uint32_t shuffle_window = 0;
  uint32_t documents = 0;
  uint32_t chunks = 0;
  uint32_t training_chunks = 0;
  uint32_t batches = 0;
  uint32_t domains = 0;
  uint32_t domain_bytes = 0;
  uint64_t tokens = 0;
  uint64_t seed = 0;  // 8 bytes reserved follow, zero
};

// Where each array begins.
struct PlanLayout {
  uint64_t keys = 0, token_offsets = 0, document_domains = 0, chunk_begins = 0, chunk_batches = 0,
           batches = 0, domain_ends = 0, tokens = 0, loss_mask = 0, domain_names = 0, checksum = 0,
           file_bytes = 0;
};
// REQUIRES: header.tokens < 2^40.
PlanLayout LayOutPlan(const PlanHeader& header);

std::string EncodePlanHeader(const PlanHeader& header);
// DataLoss on a wrong magic, Unimplemented on a later version.
absl::StatusOr<PlanHeader> DecodePlanHeader(absl::string_view bytes);

// The identity of a document, whatever plan it stands in: of the tokenizer, the ids and the
// position policy (every document's positions count from 0).
Digest DocumentKey(const Digest& tokenizer, const int32_t* ids, size_t count);

}  // namespace stillhouse

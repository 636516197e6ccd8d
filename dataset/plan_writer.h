// PlanWriter: turns documents, given in any order and amount, into a plan file.
//
// Owner: whoever builds the plan; one thread. Memory: about 40 bytes per document; token ids and
// masks wait in an unlinked file in the plan's own folder. Durability: the plan appears under its
// final name whole and synced, or not at all.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/digest.h"

namespace stillhouse {

class PlanWriter {
 public:
  struct Options {
    std::string folder;  // exists; the plan becomes <folder>/<digest>.plan
    Digest tokenizer;
    uint32_t vocabulary = 0;
    uint32_t max_tokens = 0;
    uint32_t shuffle_window = 8;
    uint64_t chunk_tokens = 16384;
    uint64_t seed = 0;
    std::vector<std::string> domains;
  };
  static absl::StatusOr<std::unique_ptr<PlanWriter>> Create(Options options);
  virtual ~PlanWriter() = default;

  // REQUIRES: 2 <= tokens.size() <= max_tokens, ids below the vocabulary, as many mask entries as
  // tokens.
  virtual absl::Status Add(absl::Span<const int32_t> tokens, absl::Span<const uint8_t> loss_mask,
                           uint32_t domain, uint32_t source) = 0;

  struct Written {
    std::string path;
    Digest digest;
    uint64_t held_out_repeats = 0;  // held-out documents whose very tokens are trained on too
  };
  // `held_out` says it of each source. REQUIRES: called once; at least one training document.
  virtual absl::StatusOr<Written> Finish(const std::vector<bool>& held_out) = 0;
};

}  // namespace stillhouse

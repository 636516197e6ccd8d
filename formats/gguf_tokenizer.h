// The tokenizer kinds of GGUF, between metadata and TokenizerSpec (GgufTokenizerSpec reads them).
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "formats/gguf_writer.h"
#include "formats/tokenizer_spec.h"

namespace stillhouse {

// The names in tokenizer.ggml.pre that we know.
inline constexpr absl::string_view kGgufPreTokenizers[] = {"smollm", "llama-bpe", "qwen2",
                                                           "default"};
// Sets the normalizer, the steps and ignore_merges of `spec` to what `name` means. Unimplemented
// for a name that is not in the list.
absl::Status AddGgufPreTokenizer(absl::string_view name, TokenizerSpec& spec);

// Adds the keys that say `spec` ("tokenizer.ggml.…"), filled up with unused tokens to `rows`, the
// rows of the embedding. Unimplemented, naming it, for what GGUF's two kinds cannot say: the file
// would be read as another tokenizer.
absl::Status AddGgufTokenizer(const TokenizerSpec& spec, int64_t rows, GgufMetadata& metadata);

// Whether two specs, of which GGUF can say the first, give every text the same ids.
bool SameForGguf(const TokenizerSpec& a, const TokenizerSpec& b);

}  // namespace stillhouse

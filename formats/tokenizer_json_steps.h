// The components of tokenizer.json around its model: normalizer, pre-tokenizer, decoder,
// post-processor.
#pragma once

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "formats/json.h"
#include "formats/tokenizer_spec.h"

namespace stillhouse {

// Each adds to `spec` what `component` says. `path` is for messages: InvalidArgument what the file
// has wrong, Unimplemented what we lack, by name.
absl::Status ParseNormalizer(const Json& component, absl::string_view path, TokenizerSpec& spec);
absl::Status ParsePreTokenizer(const Json& component, absl::string_view path, TokenizerSpec& spec);
absl::Status ParseDecoder(const Json& component, absl::string_view path, TokenizerSpec& spec);
absl::Status ParsePostProcessor(const Json& component, absl::string_view path, TokenizerSpec& spec);

// The component's `type`; "?" if it has none.
std::string ComponentType(const Json& component);
absl::Status BrokenTokenizer(absl::string_view path, absl::string_view what);
absl::Status LackingComponent(absl::string_view path, absl::string_view what,
                              absl::string_view name);

}  // namespace stillhouse

// Flags of added tokens that change no id.
//
// Files of one tokenizer differ in them: a tokenizer.json lists added tokens beside the model's
// vocabulary or in it, a GGUF knows one vocabulary and no `normalized`. Two tokenizers that differ
// in such flags alone are one, and a file that cannot say them loses nothing. Pure functions.
#pragma once

#include <vector>

#include "formats/tokenizer_spec.h"

namespace stillhouse {

// The flags of an added token as far as some text may have other ids without them.
struct EffectiveFlags {
  bool normalized = false;    // false too where the token is found in the same places either way
  bool in_vocabulary = true;  // true too where the model never looks for the token's text
};

// One for each of spec.added, in its order. Specs that are otherwise the same and have equal flags
// here give every text the same ids. Where that takes too long to see, a flag is said to matter.
std::vector<EffectiveFlags> FlagsThatMatter(const TokenizerSpec& spec);

}  // namespace stillhouse

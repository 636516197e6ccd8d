// The parts of the tiny model's tokenizer that both of its files spell out.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace stillhouse {

// The 256 bytes as GPT-2 writes them (printable characters for all), in its order of ids.
std::vector<std::string> TinyByteTokens();
// The merges in order of rank; the merged token of merge i has id 256 + i.
const std::vector<std::pair<std::string, std::string>>& TinyMerges();

}  // namespace stillhouse

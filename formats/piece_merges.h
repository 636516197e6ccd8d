// The merges of a SentencePiece vocabulary that comes with scores instead (Kudo and Richardson
// 2018).
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace stillhouse {

inline constexpr size_t kPieceBytesMax = 256;  // SentencePiece itself makes up to 16 characters

// Pairs of pieces by rank: all whose text together is a piece that is `mergeable`, those of the
// higher score first, and of one piece those of the higher parts; as `transformers` orders them
// when it reads such a file. InvalidArgument for a score that is no number or a piece that is too
// long.
absl::StatusOr<std::vector<std::pair<int32_t, int32_t>>> PieceMerges(
    const std::vector<std::string>& pieces, const std::vector<double>& scores,
    const std::vector<bool>& mergeable);

}  // namespace stillhouse

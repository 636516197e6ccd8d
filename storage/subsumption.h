// Which stored section can stand for a wanted one, and how its rows become the wanted rows.
//
// Pure functions. A section is served by itself, and logits/topk by logits/topk with more ids: the
// ids and their levels are those that would have been captured, the residual is within what KeepTop
// states. Nothing else stands for another: logits/topp cuts by probabilities that levels no longer
// tell, draws are not a part of other draws, and who asks for bf16 gets no int8, nor the reverse.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "storage/codec.h"

namespace stillhouse {

bool Serves(const SectionSpec& have, const SectionSpec& want);

// Parts are named and decoded by `have`; AsWanted makes of the rows what `want` is.
struct ServedSection {
  SectionSpec want;
  SectionSpec have;
  friend bool operator==(const ServedSection&, const ServedSection&) = default;
};
// For each wanted section the stored one that serves it with the fewest bytes, in order. A pure
// function of sets: a run that resolves once, against the sections of its job, is served by the
// same ones whenever it starts again. NotFound names what is wanted and what there is.
absl::StatusOr<std::vector<ServedSection>> ResolveSections(absl::Span<const SectionSpec> stored,
                                                           absl::Span<const SectionSpec> wanted);

// `rows` are of served.have.
SectionRows AsWanted(const ServedSection& served, SectionRows rows);

}  // namespace stillhouse

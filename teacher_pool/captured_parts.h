// From captured rows to the parts that are stored.
#pragma once

#include <vector>

#include "common/digest.h"
#include "dataset/plan.h"
#include "storage/part.h"
#include "teacher_pool/capture.h"

namespace stillhouse {

// The parts of section `number` of the request, which is `spec`, of these documents, in order.
// ParallelFor inside.
std::vector<Part> EncodeParts(const Plan& plan, const Digest& teacher, const SectionSpec& spec,
                              size_t number, const std::vector<CapturedDocument>& documents);

}  // namespace stillhouse

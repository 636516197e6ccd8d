#include "teacher_pool/captured_parts.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "model/parallel.h"
#include "storage/codec.h"

namespace stillhouse {

std::vector<Part> EncodeParts(const Plan& plan, const Digest& teacher, const SectionSpec& spec,
                              size_t number, const std::vector<CapturedDocument>& documents) {
  const uint32_t step = spec.RowsPerPart();
  std::vector<std::vector<Part>> by_document(documents.size());
  ParallelFor(0, static_cast<int64_t>(documents.size()), 1, [&](int64_t first, int64_t last) {
    for (int64_t d = first; d < last; ++d) {
      const CapturedDocument& captured = documents[static_cast<size_t>(d)];
      const PlanDocument document = plan.document(captured.document);
      const Digest section = SectionKey(teacher, document.key, spec);
      for (uint32_t begin = 0; begin < document.rows(); begin += step) {
        const uint32_t end = std::min(begin + step, document.rows());
        by_document[static_cast<size_t>(d)].push_back(
            {{section, begin},
             end - begin,
             EncodeSection(spec, captured.sections[number], begin, end)});
      }
    }
  });
  std::vector<Part> parts;
  for (std::vector<Part>& some : by_document) {
    std::move(some.begin(), some.end(), std::back_inserter(parts));
  }
  return parts;
}

}  // namespace stillhouse

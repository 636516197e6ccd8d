// Top-k log-probabilities as plain arrays, as converters from other programs' formats write them,
// seen as a job to export (tools/import_distillkit.py; grammar in docs/formats.md).
//
// One thread; blocking. Nothing is trusted: DataLoss names the file and the row that is wrong, and
// no more is allocated than the files' sizes bound.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "storage/service/job_store.h"

namespace stillhouse {

struct PlainTokenizer {
  Digest fingerprint;
  uint32_t vocabulary = 0;
};

class PlainLogits : public JobSource {
 public:
  virtual const std::string& job() const = 0;  // the one job that it has
  // Of the label and revision that the folder names, and the tokenizer.
  virtual const Digest& teacher() const = 0;
};

// NotFound when there is no such folder. Plans the documents, all of them trained on.
absl::StatusOr<std::unique_ptr<PlainLogits>> OpenPlainLogits(const std::string& folder,
                                                             const PlainTokenizer& tokenizer);

}  // namespace stillhouse

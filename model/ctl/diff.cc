#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/json.h"
#include "formats/model_diff.h"
#include "formats/model_files.h"
#include "model/ctl/commands.h"

namespace stillhouse {
namespace {

OrderedJson NumbersJson(const TensorDifference& tensor) {
  return {{"values", tensor.count},
          {"max", tensor.max},
          {"rms", tensor.Rms()},
          {"not_finite", tensor.not_finite}};
}

OrderedJson TensorJson(const TensorDifference& tensor) {
  OrderedJson out = {{"name", tensor.name}};
  if (!tensor.InBoth()) {
    out["only_in"] = tensor.dtype_b.empty() ? "a" : "b";
    out["dtype"] = tensor.dtype_b.empty() ? tensor.dtype_a : tensor.dtype_b;
    out["shape"] = tensor.dtype_b.empty() ? tensor.shape_a : tensor.shape_b;
    return out;
  }
  out["dtypes"] = {tensor.dtype_a, tensor.dtype_b};
  if (tensor.Comparable()) {
    out["shape"] = tensor.shape_a;
    out.update(NumbersJson(tensor));
  } else {
    out["shapes"] = {tensor.shape_a, tensor.shape_b};
  }
  return out;
}

OrderedJson DifferenceJson(const DiffFlags& flags, const ModelDifference& difference) {
  OrderedJson out = {{"a", flags.a},
                     {"b", flags.b},
                     {"same", difference.Same(flags.tolerance)},
                     {"tolerance", flags.tolerance}};
  OrderedJson fields = OrderedJson::array(), tensors = OrderedJson::array();
  for (const FieldDifference& field : difference.architecture) {
    fields.push_back({{"field", field.field}, {"a", field.a}, {"b", field.b}});
  }
  for (const TensorDifference& tensor : difference.tensors) tensors.push_back(TensorJson(tensor));
  out["architecture"] = std::move(fields);
  out["tokenizer"] = difference.tokenizer;
  out["overall"] = NumbersJson(difference.Overall());
  out["tensors"] = std::move(tensors);
  return out;
}

std::string TensorLine(const TensorDifference& tensor) {
  const std::string dtypes = tensor.dtype_a == tensor.dtype_b
                                 ? tensor.dtype_a
                                 : absl::StrCat(tensor.dtype_a, " / ", tensor.dtype_b);
  if (!tensor.InBoth()) {
    const bool in_a = tensor.dtype_b.empty();
    return absl::StrFormat("only in %s%*s %s %s\n", in_a ? "A" : "B", 16, "",
                           ShapeText(in_a ? tensor.shape_a : tensor.shape_b), tensor.name);
  }
  if (!tensor.Comparable()) {
    return absl::StrFormat("%s in A, %s in B  %s\n", ShapeText(tensor.shape_a),
                           ShapeText(tensor.shape_b), tensor.name);
  }
  std::string line =
      absl::StrFormat("%-11.4g %-11.4g  %-12s %s\n", tensor.max, tensor.Rms(), dtypes, tensor.name);
  if (tensor.not_finite > 0) {
    line.insert(line.size() - 1, absl::StrCat(", ", tensor.not_finite, " values not finite"));
  }
  return line;
}

// Only what differs, but for the last line.
std::string Table(const DiffFlags& flags, const ModelDifference& difference) {
  std::string out;
  for (const FieldDifference& field : difference.architecture) {
    absl::StrAppend(&out, field.field, ": ", field.a, " in A, ", field.b, " in B\n");
  }
  if (!difference.tokenizer.empty())
    absl::StrAppend(&out, "tokenizer: ", difference.tokenizer, "\n");
  int64_t differing = 0;
  std::string lines;
  for (const TensorDifference& tensor : difference.tensors) {
    const bool same = tensor.Comparable() && tensor.not_finite == 0 && tensor.max == 0;
    if (same && tensor.dtype_a == tensor.dtype_b) continue;
    if (!same) ++differing;
    absl::StrAppend(&lines, TensorLine(tensor));
  }
  if (!lines.empty()) {
    absl::StrAppend(&out,
                    absl::StrFormat("%-11s %-11s  %-12s %s\n", "max", "RMS", "stored as", "tensor"),
                    lines);
  }
  const TensorDifference overall = difference.Overall();
  absl::StrAppend(
      &out, differing, " of ", difference.tensors.size(), " tensors differ; overall ",
      absl::StrFormat("max %.4g, RMS %.4g over %d values: ", overall.max, overall.Rms(),
                      overall.count),
      difference.Same(flags.tolerance) ? "the same model" : "the models differ",
      flags.tolerance > 0 ? absl::StrCat(" (tolerance ", flags.tolerance, ")\n") : "\n");
  return out;
}

}  // namespace

absl::StatusOr<int> Diff(const DiffFlags& flags) {
  if (!(flags.tolerance >= 0)) return absl::InvalidArgumentError("--tolerance must be 0 or more");
  SH_ASSIGN_OR_RETURN(const ModelFiles a, OpenModelFiles(flags.a));
  SH_ASSIGN_OR_RETURN(const ModelFiles b, OpenModelFiles(flags.b));
  SH_ASSIGN_OR_RETURN(const ModelDifference difference, DiffModels(a, b));
  const std::string text =
      flags.output == "json" ? DifferenceJson(flags, difference)
                                       .dump(2, ' ', false, OrderedJson::error_handler_t::replace) +
                                   "\n"
                             : Table(flags, difference);
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    return ErrnoStatus("writing", "standard output");
  }
  return difference.Same(flags.tolerance) ? kExitOk : kExitConflict;
}

}  // namespace stillhouse

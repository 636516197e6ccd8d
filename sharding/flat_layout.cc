#include "sharding/flat_layout.h"

#include "common/status.h"

namespace stillhouse {

FlatLayout::FlatLayout(const std::vector<std::pair<std::string, size_t>>& parameters) {
  parameters_.reserve(parameters.size());
  for (const auto& [name, count] : parameters) {
    SH_CHECK(count > 0, name);
    SH_CHECK(Find(name) == nullptr, name);
    parameters_.push_back({name, count, size_});
    size_ += (count + kFlatAlignment - 1) / kFlatAlignment * kFlatAlignment;
  }
}

const FlatParameter* FlatLayout::Find(absl::string_view name) const {
  for (const FlatParameter& parameter : parameters_) {
    if (parameter.name == name) return &parameter;
  }
  return nullptr;
}

size_t FlatLayout::parameter_count() const {
  size_t count = 0;
  for (const FlatParameter& parameter : parameters_) count += parameter.count;
  return count;
}

FlatRange FlatLayout::ShardOf(int rank, int ranks) const {
  SH_CHECK(0 <= rank && rank < ranks, rank, " of ", ranks);
  const size_t units = size_ / kFlatAlignment;
  const auto boundary = [&](int r) {
    return units * static_cast<size_t>(r) / static_cast<size_t>(ranks) * kFlatAlignment;
  };
  return {boundary(rank), boundary(rank + 1)};
}

}  // namespace stillhouse

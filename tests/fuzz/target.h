// FuzzTarget: one parser of bytes that we do not trust, and inputs it accepts to start from.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace stillhouse {

struct FuzzTarget {
  std::string name;
  std::vector<std::string> seeds;  // valid inputs; mutations of them are tried
  // Must come back, whatever the input, without undefined behaviour and in bounded memory.
  std::function<void(absl::string_view input)> run;
};

std::vector<FuzzTarget> FormatTargets();
std::vector<FuzzTarget> StorageTargets();
std::vector<FuzzTarget> TextAndWireTargets();

}  // namespace stillhouse

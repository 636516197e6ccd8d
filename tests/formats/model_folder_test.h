// A test fixture with a folder of its own for small models.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "common/file.h"
#include "common/status.h"
#include "formats/model_files.h"
#include "tests/formats/tiny_model.h"

namespace stillhouse {

class ModelFolderTest : public ::testing::Test {
 protected:
  std::string Path(const std::string& name) const { return JoinPath(folder_.path(), name); }
  static ModelFiles Open(const std::string& path) {
    auto model = OpenModelFiles(path);
    SH_CHECK_OK(model);
    return *std::move(model);
  }
  // A tiny model as the Hugging Face folder `name`.
  ModelFiles Tiny(const std::string& name, const TinyModelOptions& options = {}) {
    SH_CHECK_OK(WriteTinyModel(Path(name), options));
    return Open(Path(name));
  }

  TempFolder folder_ = *TempFolder::Create();
};

}  // namespace stillhouse

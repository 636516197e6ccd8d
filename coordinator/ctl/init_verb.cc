// init: writes a recipe to start from.
#include <errno.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/command_line.h"
#include "common/file.h"
#include "common/status.h"
#include "common/utf8.h"
#include "coordinator/ctl/output.h"
#include "coordinator/ctl/starting_recipe.h"
#include "coordinator/ctl/verb.h"
#include "dataset/sources.h"
#include "formats/model_files.h"
#include "recipe/recipe.h"

namespace stillhouse {
namespace {

struct InitOptions {
  std::string teacher;
  std::vector<std::string> texts;
  std::string file = "recipe.yaml";
  bool force = false;
};

absl::StatusOr<std::string> Absolute(const std::string& path) {
  std::error_code error;
  const auto absolute = std::filesystem::absolute(path, error);
  if (error) return absl::InternalError(absl::StrCat(path, ": ", error.message()));
  std::string normal = absolute.lexically_normal().string();
  while (normal.size() > 1 && normal.back() == '/') normal.pop_back();
  SH_RETURN_IF_ERROR(CheckPathIsUtf8(normal));
  return normal;
}

absl::StatusOr<int> Init(const InitOptions& options) {
  StartingRecipe start;
  SH_ASSIGN_OR_RETURN(start.file, Absolute(options.file));
  if (PathExists(start.file) && !options.force) {
    return absl::AlreadyExistsError(
        absl::StrCat(options.file, " is there already; --force writes over it"));
  }
  SH_ASSIGN_OR_RETURN(const ModelFiles teacher, OpenModelFiles(options.teacher));
  start.config = teacher.config;
  SH_ASSIGN_OR_RETURN(start.teacher, Absolute(options.teacher));
  std::vector<std::string> texts;
  for (const std::string& text : options.texts) {
    SH_ASSIGN_OR_RETURN(const std::string absolute, Absolute(text));
    texts.push_back(absolute);
  }
  SH_ASSIGN_OR_RETURN(start.texts, FindTexts(texts));
  std::vector<SourceRecipe> sources;
  for (const std::string& text : start.texts) {
    SH_RETURN_IF_ERROR(CheckPathIsUtf8(text));
    sources.push_back({.path = text, .domain = ""});
  }
  SH_ASSIGN_OR_RETURN(const std::vector<SourceFile> files, FindSources(sources));
  uint64_t bytes = 0;
  for (const SourceFile& file : files) bytes += file.bytes;
  const std::string recipe = WriteStartingRecipe(start, bytes);
  SH_RETURN_IF_ERROR_AT(ParseRecipe(recipe, options.file), "the recipe just made is refused");
  SH_RETURN_IF_ERROR(WriteFileAtomically(start.file, recipe));
  PrintText(absl::StrCat("wrote ", options.file, ": ", Counted(files.size(), "file"), " of text, ",
                         HumanBytes(bytes), "\nnext: ", ShellWord(program_invocation_name),
                         " check ", ShellWord(options.file), "\n"));
  return kExitOk;
}

}  // namespace

void AddInitVerb(Command app, ChosenVerb& chosen) {
  auto options = std::make_shared<InitOptions>();
  Command verb = app.AddCommand("init", "Write a recipe to start from");
  verb.AddOption("TEACHER", &options->teacher, "a GGUF file or a Hugging Face folder").Required();
  verb.AddOption("TEXT", &options->texts, "text files, JSON lines, folders or globs").Required();
  verb.AddOption("-o,--output", &options->file, "the recipe to write")
      .ShowDefault()
      .ValueName("FILE");
  verb.AddFlag("--force", &options->force, "write over FILE if it is there");
  verb.SetFooter(
      "Examples:\n"
      "  coordinatorctl init teacher.gguf corpus/\n"
      "  coordinatorctl init models/teacher 'texts/*.txt' chats.jsonl -o chats.yaml\n");
  verb.OnParsed([options, &chosen] { chosen = [options] { return Init(*options); }; });
}

}  // namespace stillhouse

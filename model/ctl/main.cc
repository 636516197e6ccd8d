// modelctl: look at a model and its tokenizer, compare numbers, convert, generate.
//
// Exit codes: 2 when the command line is wrong, else ExitCodeFor. Errors are one line.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>

#include "common/log.h"
#include "common/status.h"
#include "model/ctl/commands.h"
#include "model/parallel.h"

namespace stillhouse {
namespace {

constexpr char kModelHelp[] = "a GGUF file or a Hugging Face folder";

struct Flags {
  InspectFlags inspect;
  std::string tokenize_model;
  LogitsFlags logits;
  GenerateFlags generate;
  ConvertFlags convert;
  int threads = 0;
};

void AddModel(CLI::App* command, std::string& model, const std::string& help = kModelHelp) {
  command->add_option("MODEL", model, help)->required();
}

void AddThreads(CLI::App* command, int& threads) {
  command
      ->add_option("--threads", threads, "threads to compute with; as many as cores if not given")
      ->check(CLI::Range(1, 1024));
}

void AddDtype(CLI::App* command, std::string& dtype, std::initializer_list<std::string> values) {
  command->add_option("--dtype", dtype, "to compute in, or to store")
      ->check(CLI::IsMember(values))
      ->capture_default_str();
}

void AddGenerate(CLI::App& app, Flags& flags) {
  GenerateFlags& generate = flags.generate;
  CLI::App* command = app.add_subcommand("generate", "continue a prompt");
  AddModel(command, generate.model);
  command->add_option("--prompt", generate.prompt, "the text to continue, as it is")->required();
  command->add_option("--max-tokens", generate.max_tokens, "stop after so many tokens")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--temperature", generate.sampling.temperature, "0 takes the likeliest token")
      ->capture_default_str();
  command->add_option("--top-k", generate.sampling.top_k, "only the k likeliest; 0 for all")
      ->capture_default_str();
  command->add_option("--top-p", generate.sampling.top_p, "only the likeliest that sum to p")
      ->capture_default_str();
  command->add_option("--seed", generate.seed, "of the draws")->capture_default_str();
  AddDtype(command, generate.dtype, {"bf16", "fp32"});
  AddThreads(command, flags.threads);
  command->footer("Example: modelctl generate runs/half --prompt 'To install a package,'");
}

// The command given, after parsing.
absl::Status Run(const CLI::App& app, const Flags& flags) {
  if (flags.threads > 0) SetComputeThreads(flags.threads);
  if (app.got_subcommand("inspect")) return Inspect(flags.inspect);
  if (app.got_subcommand("tokenize")) return Tokenize(flags.tokenize_model);
  if (app.got_subcommand("logits")) return Logits(flags.logits);
  if (app.got_subcommand("generate")) return Generate(flags.generate);
  return Convert(flags.convert);
}

int Main(int argc, char** argv) {
  CLI::App app("Look at a model and its tokenizer, compare numbers, convert, generate.",
               "modelctl");
  app.require_subcommand(1);
  Flags flags;

  CLI::App* inspect = app.add_subcommand("inspect", "print architecture, sizes and fingerprints");
  AddModel(inspect, flags.inspect.model);
  inspect->add_option("-o,--output", flags.inspect.output, "table or json")
      ->check(CLI::IsMember({"table", "json"}))
      ->capture_default_str();
  inspect->add_flag("--tensors", flags.inspect.tensors, "list every tensor");

  CLI::App* tokenize = app.add_subcommand(
      "tokenize", "read {\"text\": …} lines, write {\"ids\": […]} lines; adds no special token");
  AddModel(tokenize, flags.tokenize_model,
           "a GGUF file, a Hugging Face folder, or a folder with only tokenizer.json");

  CLI::App* logits = app.add_subcommand("logits", "write logits.0, … for every line of ids");
  AddModel(logits, flags.logits.model);
  logits
      ->add_option("--ids", flags.logits.ids, "file of {\"ids\": […]} lines; - for standard input")
      ->required();
  logits
      ->add_option("--out", flags.logits.out,
                   "safetensors file to write: fp32 [tokens, vocabulary]")
      ->required();
  AddDtype(logits, flags.logits.dtype, {"fp32", "bf16"});
  AddThreads(logits, flags.threads);

  AddGenerate(app, flags);

  CLI::App* convert = app.add_subcommand("convert", "write the model as a Hugging Face folder");
  AddModel(convert, flags.convert.model);
  convert->add_option("--out", flags.convert.out, "folder to make")->required();
  AddDtype(convert, flags.convert.dtype, {"fp32", "bf16", "fp16"});

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  const absl::Status status = Run(app, flags);
  if (!status.ok()) std::fprintf(stderr, "modelctl: %s\n", std::string(status.message()).c_str());
  return ExitCodeFor(status);
}

}  // namespace
}  // namespace stillhouse

int main(int argc, char** argv) { return stillhouse::Main(argc, argv); }

// modelctl: look at a model and its tokenizer, compare numbers, convert, generate.
//
// Exit codes: 2 when the command line is wrong, else ExitCodeFor. Errors are one line.
#include <cstdio>
#include <string>

#include "common/command_line.h"
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

void AddModel(Command command, std::string& model, const std::string& help = kModelHelp) {
  command.AddOption("MODEL", &model, help).Required();
}

void AddThreads(Command command, int& threads) {
  command.AddOption("--threads", &threads, "threads to compute with; as many as cores if not given")
      .Range(1, 1024);
}

void AddDtype(Command command, std::string& dtype, const std::vector<std::string>& values) {
  command.AddOption("--dtype", &dtype, "to compute in, or to store").OneOf(values).ShowDefault();
}

void AddGenerate(Command app, Flags& flags) {
  GenerateFlags& generate = flags.generate;
  Command command = app.AddCommand("generate", "continue a prompt");
  AddModel(command, generate.model);
  command.AddOption("--prompt", &generate.prompt, "the text to continue, as it is").Required();
  command.AddOption("--max-tokens", &generate.max_tokens, "stop after so many tokens")
      .Range(1, 1 << 20)
      .ShowDefault();
  command.AddOption("--stop", &generate.stops,
                    "a token, as text, that ends the output; may be given several times");
  command.AddOption("--temperature", &generate.sampling.temperature, "0 takes the likeliest token")
      .ShowDefault();
  command.AddOption("--top-k", &generate.sampling.top_k, "only the k likeliest; 0 for all")
      .ShowDefault();
  command.AddOption("--top-p", &generate.sampling.top_p, "only the likeliest that sum to p")
      .ShowDefault();
  command.AddOption("--seed", &generate.seed, "of the draws").ShowDefault();
  AddDtype(command, generate.dtype, {"bf16", "fp32"});
  AddThreads(command, flags.threads);
  command.SetFooter("Example: modelctl generate runs/half --prompt 'To install a package,'");
}

// The command given, after parsing.
absl::Status Run(const CommandLine& command_line, const Flags& flags) {
  if (flags.threads > 0) SetComputeThreads(flags.threads);
  if (command_line.Chose("inspect")) return Inspect(flags.inspect);
  if (command_line.Chose("tokenize")) return Tokenize(flags.tokenize_model);
  if (command_line.Chose("logits")) return Logits(flags.logits);
  if (command_line.Chose("generate")) return Generate(flags.generate);
  return Convert(flags.convert);
}

int Main(int argc, char** argv) {
  CommandLine command_line("Look at a model and its tokenizer, compare numbers, convert, generate.",
                           "modelctl");
  command_line.RequireCommand();
  Flags flags;

  Command inspect =
      command_line.AddCommand("inspect", "print architecture, sizes and fingerprints");
  AddModel(inspect, flags.inspect.model);
  inspect.AddOption("-o,--output", &flags.inspect.output, "table or json")
      .OneOf({"table", "json"})
      .ShowDefault();
  inspect.AddFlag("--tensors", &flags.inspect.tensors, "list every tensor");

  Command tokenize = command_line.AddCommand(
      "tokenize", "read {\"text\": …} lines, write {\"ids\": […]} lines; adds no special token");
  AddModel(tokenize, flags.tokenize_model,
           "a GGUF file, a Hugging Face folder, or a folder with only tokenizer.json");

  Command logits = command_line.AddCommand("logits", "write logits.0, … for every line of ids");
  AddModel(logits, flags.logits.model);
  logits.AddOption("--ids", &flags.logits.ids, "file of {\"ids\": […]} lines; - for standard input")
      .Required();
  logits
      .AddOption("--out", &flags.logits.out, "safetensors file to write: fp32 [tokens, vocabulary]")
      .Required();
  AddDtype(logits, flags.logits.dtype, {"fp32", "bf16"});
  AddThreads(logits, flags.threads);

  AddGenerate(command_line, flags);

  Command convert = command_line.AddCommand("convert", "write the model as a Hugging Face folder");
  AddModel(convert, flags.convert.model);
  convert.AddOption("--out", &flags.convert.out, "folder to make").Required();
  AddDtype(convert, flags.convert.dtype, {"fp32", "bf16", "fp16"});

  if (const auto code = command_line.Parse(argc, argv)) return *code;
  const absl::Status status = Run(command_line, flags);
  if (!status.ok()) std::fprintf(stderr, "modelctl: %s\n", std::string(status.message()).c_str());
  return ExitCodeFor(status);
}

}  // namespace
}  // namespace stillhouse

int main(int argc, char** argv) { return stillhouse::Main(argc, argv); }

// modelctl: look at a model and its tokenizer, compare numbers, convert, generate.
//
// Exit codes: 2 when the command line is wrong, 4 from diff where the models differ, else
// ExitCodeFor (docs/exit-codes.md). Errors are one line.
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/command_line.h"
#include "common/file.h"
#include "common/log.h"
#include "common/status.h"
#include "model/ctl/commands.h"
#include "model/parallel.h"

namespace stillhouse {
namespace {

constexpr char kModelHelp[] = "a GGUF file or a Hugging Face folder";

struct Flags {
  InspectFlags inspect;
  TokenizeFlags tokenize;
  DetokenizeFlags detokenize;
  LogitsFlags logits;
  GenerateFlags generate;
  ConvertFlags convert;
  DiffFlags diff;
  std::vector<std::string> help;  // the command to explain
  int threads = 0;
};

constexpr char kExitCodes[] =
    "Exit codes: 0 done, 1 failed, 2 wrong command line, 3 not found, 4 in conflict with what is "
    "there\n(of diff: the models differ), 5 not allowed, 7 damaged data.\n"
    "`modelctl help COMMAND` explains one.\n";

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
  command.SetFooter(
      "Prints the prompt and what follows it, character by character; special tokens are left out, "
      "and bytes\nthat are no UTF-8 become U+FFFD.\n"
      "Example: modelctl generate runs/half --prompt 'To install a package,'");
}

void AddConvert(Command app, ConvertFlags& convert) {
  Command command =
      app.AddCommand("convert", "write the model as a Hugging Face folder or a GGUF file");
  AddModel(command, convert.model);
  command.AddOption("--out", &convert.out, "folder to make, or NAME.gguf").Required();
  command
      .AddOption("--dtype", &convert.dtype,
                 "to store; `stored` keeps each tensor's own, q8_0 is for GGUF")
      .OneOf({"fp32", "bf16", "fp16", "q8_0", "stored"})
      .ShowDefault();
  command
      .AddOption("--max-shard-size", &convert.shard_bytes_max,
                 "bytes of one file in a folder, beyond which there are several")
      .Range(uint64_t{1}, uint64_t{1} << 60)
      .ShowDefault();
  command.SetFooter(
      "A tensor that keeps its dtype keeps its bits. A value that is too large for the new dtype, "
      "and in bf16,\nfp16 and q8_0 one that is NaN or infinite, is an error that names the tensor; "
      "nothing is written then.\n"
      "Example: modelctl convert runs/half --out half.gguf --dtype q8_0");
}

void AddTokenize(Command app, Flags& flags) {
  constexpr char kHelp[] =
      "a GGUF file, a Hugging Face folder, or a folder with only tokenizer.json";
  Command tokenize =
      app.AddCommand("tokenize", "read {\"text\": …} lines, write {\"ids\": […]} lines");
  AddModel(tokenize, flags.tokenize.model, kHelp);
  tokenize.AddFlag("--offsets", &flags.tokenize.offsets,
                   "add \"offsets\": for each id the bytes of the text that it came from");
  tokenize.AddFlag("--add-special-tokens", &flags.tokenize.special,
                   "add what the tokenizer puts before and after a text");
  tokenize.SetFooter(
      "Example: echo '{\"text\": \"Hello\"}' | modelctl tokenize runs/half --offsets");
  Command detokenize =
      app.AddCommand("detokenize", "read {\"ids\": […]} lines, write {\"text\": …} lines");
  AddModel(detokenize, flags.detokenize.model, kHelp);
  detokenize.AddFlag("--skip-special-tokens", &flags.detokenize.skip_special,
                     "leave special tokens out");
  detokenize.SetFooter(
      "Bytes that are no UTF-8 become U+FFFD.\n"
      "Example: echo '{\"ids\": [19556, 905]}' | modelctl detokenize runs/half");
}

void AddDiff(Command app, DiffFlags& diff) {
  Command command = app.AddCommand("diff", "compare two models: architecture, tokenizer, tensors");
  command.AddOption("A", &diff.a, kModelHelp).Required();
  command.AddOption("B", &diff.b, "another").Required();
  command.AddOption("-o,--output", &diff.output, "table or json")
      .OneOf({"table", "json"})
      .ShowDefault();
  command
      .AddOption("--tolerance", &diff.tolerance,
                 "values that differ by no more than this count as the same")
      .ShowDefault();
  command.SetFooter(
      "Leaves with 0 if nothing differs, with 4 if something does; how tensors are stored may "
      "differ.\nExample: modelctl diff runs/half half.gguf --tolerance 1e-2");
}

absl::Status Help(const CommandLine& command_line, const std::vector<std::string>& names) {
  Command about = command_line;
  for (const std::string& name : names) {
    const std::optional<Command> found = about.Find(name);
    if (!found.has_value()) {
      return absl::NotFoundError(absl::StrCat("no command '", name, "'; modelctl help lists them"));
    }
    about = *found;
  }
  std::fputs(about.Help(names.empty() ? "" : "modelctl").c_str(), stdout);
  return std::fflush(stdout) == 0 ? absl::OkStatus() : ErrnoStatus("writing", "standard output");
}

// The command given, after parsing.
absl::Status RunPlain(const CommandLine& command_line, const Flags& flags) {
  if (command_line.Chose("inspect")) return Inspect(flags.inspect);
  if (command_line.Chose("tokenize")) return Tokenize(flags.tokenize);
  if (command_line.Chose("detokenize")) return Detokenize(flags.detokenize);
  if (command_line.Chose("logits")) return Logits(flags.logits);
  if (command_line.Chose("generate")) return Generate(flags.generate);
  if (command_line.Chose("help")) return Help(command_line, flags.help);
  return Convert(flags.convert);
}

absl::StatusOr<int> Run(const CommandLine& command_line, const Flags& flags) {
  if (flags.threads > 0) SetComputeThreads(flags.threads);
  if (command_line.Chose("diff")) return Diff(flags.diff);
  SH_RETURN_IF_ERROR(RunPlain(command_line, flags));
  return kExitOk;
}

int Main(int argc, char** argv) {
  CommandLine command_line("Look at a model and its tokenizer, compare numbers, convert, generate.",
                           "modelctl");
  command_line.SetVersion("modelctl " SH_VERSION);
  command_line.RequireCommand();
  command_line.SetFooter(kExitCodes);
  Flags flags;

  Command inspect =
      command_line.AddCommand("inspect", "print architecture, sizes and fingerprints");
  AddModel(inspect, flags.inspect.model);
  inspect.AddOption("-o,--output", &flags.inspect.output, "table or json")
      .OneOf({"table", "json"})
      .ShowDefault();
  inspect.AddFlag("--tensors", &flags.inspect.tensors, "list every tensor");

  AddTokenize(command_line, flags);

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

  AddConvert(command_line, flags.convert);
  AddDiff(command_line, flags.diff);
  command_line.AddCommand("help", "explain a command").AddOption("COMMAND", &flags.help, "which");

  if (const auto code = command_line.Parse(argc, argv, UsageErrors::kOneLine)) return *code;
  const absl::StatusOr<int> code = Run(command_line, flags);
  if (code.ok()) return *code;
  std::fprintf(stderr, "modelctl: %s\n",
               WithoutControls(std::string(code.status().message())).c_str());
  return ExitCodeFor(code.status());
}

}  // namespace
}  // namespace stillhouse

int main(int argc, char** argv) { return stillhouse::Main(argc, argv); }

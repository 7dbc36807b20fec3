// kvpool-worker: flags, loading, the loop around the engine, and what is printed.
//
// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "proto/limits.h"
#include "worker/checkpoint.h"
#include "worker/engine.h"
#include "worker/kv_factory.h"
#include "worker/llama.h"
#include "worker/math.h"
#include "worker/model_name.h"
#include "worker/prompts.h"
#include "worker/report.h"
#include "worker/score.h"
#include "worker/token_classes.h"
#include "worker/tokenizer.h"

namespace kvpool {
namespace {

constexpr Duration kProgressEvery = std::chrono::seconds(2);

constexpr const char* kAbout =
    "Runs a Llama-family model on prompts, or scores a text with it.\n"
    "\n"
    "  kvpool-worker --kv private --model worker/models/prose-5m --prompts "
    "worker/demo/prompts.txt\n"
    "  kvpool-worker --token-file token --model worker/models/prose-5m --score "
    "worker/demo/text.txt\n"
    "\n"
    "The model is a directory in the Hugging Face layout: config.json, model.safetensors (or\n"
    "shards with their index) and tokenizer.model. Progress goes to stderr, results to stdout.\n"
    "Exit status: 0 all requests finished; 3 some failed, each with its reason; 1 bad input.\n";

enum class Output { kText, kJson };

struct Flags {
  std::string model, prompts, score, summary_file;
  Prompt defaults;
  uint32_t batch = 16, chunk = 64, threads = 1, context = 512, windows = 0;
  PromptMode prompt = PromptMode::kIterated;
  Output output = Output::kText;
  KvOptions kv;
};

void AddFlags(CLI::App& app, Flags& flags) {
  app.add_option("--model", flags.model, "Directory of the checkpoint")
      ->required()
      ->check(CLI::ExistingDirectory);
  auto* const what = app.add_option_group("what to do");
  what->add_option("--prompts", flags.prompts,
                   "Continue each prompt of this file: one a line, with \\n, \\t and \\\\ as "
                   "escapes, or JSON lines {\"prompt\": ..., \"tenant\": ..., \"max_tokens\": ..., "
                   "\"temperature\": ..., \"seed\": ...}")
      ->check(CLI::ExistingFile);
  what->add_option("--score", flags.score,
                   "Print the perplexity of this text. All of it is prompt: policies that act at a "
                   "prompt's end (snapkv, pyramidkv, adakv, kvcompress, fastgen) change nothing; "
                   "measure them with scripts/quality")
      ->check(CLI::ExistingFile);
  what->require_option(1);
  app.add_option("--tenant", flags.defaults.tenant,
                 "Tenant of the text and of prompts that name none");
  app.add_option("--max-tokens", flags.defaults.max_tokens, "Tokens to generate for a prompt")
      ->check(CLI::Range(1u, kMaxNewTokens))
      ->capture_default_str();
  app.add_option("--temperature", flags.defaults.temperature, "0: always the likeliest token")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  app.add_option("--seed", flags.defaults.seed, "Of the sampling; equal seeds repeat a run")
      ->capture_default_str();
  app.add_option("--context", flags.context, "With --score: tokens of a window, BOS included")
      ->check(CLI::Range(2u, limits::kSessionTokens))
      ->capture_default_str();
  app.add_option("--windows", flags.windows, "With --score: only the first windows; 0: all")
      ->capture_default_str();
  app.add_option("--batch", flags.batch, "Most sequences that run at once")
      ->check(CLI::Range(1u, limits::kRunningPerWorker))
      ->capture_default_str();
  app.add_option("--chunk", flags.chunk,
                 "Most tokens of a prompt or window in one step; 1: as in decoding")
      ->check(CLI::Range(1u, 4096u))
      ->capture_default_str();
  app.add_option("--prompt", flags.prompt,
                 "How several tokens pass layers that use keys and values from above (LCKV): "
                 "iterated, or sequential, one by one: exact and slower [iterated]")
      ->transform(CLI::CheckedTransformer(
                      std::map<std::string, PromptMode>{{"iterated", PromptMode::kIterated},
                                                        {"sequential", PromptMode::kSequential}})
                      .description("{iterated,sequential}"))
      ->type_name("TEXT");
  app.add_option("--threads", flags.threads, "Threads of the forward pass")
      ->check(CLI::Range(1u, 256u))
      ->capture_default_str();
  AddKvFlags(app, flags.kv);
  app.add_option("-o", flags.output, "text, or json: one line a prompt, the summary last [text]")
      ->transform(CLI::CheckedTransformer(std::map<std::string, Output>{{"text", Output::kText},
                                                                        {"json", Output::kJson}})
                      .description("{text,json}"))
      ->type_name("TEXT");
  app.add_option("--json", flags.summary_file, "Write the summary to this file as JSON");
}

// Everything to do, in the engine's words.
struct Work {
  std::vector<std::string> tenants;
  std::vector<Request> requests;
  uint32_t session_tokens = 0;  // longest session
};

size_t TenantIndex(std::vector<std::string>& tenants, const std::string& name) {
  const auto found = std::find(tenants.begin(), tenants.end(), name);
  if (found == tenants.end()) {
    tenants.push_back(name);
    return tenants.size() - 1;
  }
  return found - tenants.begin();
}

absl::StatusOr<Work> PlanPrompts(const Flags& flags, const Tokenizer& tokenizer, int32_t bos) {
  absl::StatusOr<std::string> text = ReadTextFile(flags.prompts);
  if (!text.ok()) return text.status();
  absl::StatusOr<std::vector<Prompt>> prompts = ParsePrompts(*text, flags.defaults);
  if (!prompts.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(flags.prompts, ": ", prompts.status().message()));
  }
  Work work;
  for (const Prompt& prompt : *prompts) {
    Request request{.id = work.requests.size(),
                    .tenant = TenantIndex(work.tenants, prompt.tenant),
                    .prompt = {bos},
                    .max_new_tokens = prompt.max_tokens,
                    .sampling = {.temperature = prompt.temperature, .seed = prompt.seed}};
    const std::vector<int32_t> ids = tokenizer.Encode(prompt.text);
    request.prompt.insert(request.prompt.end(), ids.begin(), ids.end());
    work.requests.push_back(std::move(request));
  }
  return work;
}

absl::StatusOr<Work> PlanScore(const Flags& flags, const Tokenizer& tokenizer, int32_t bos) {
  absl::StatusOr<std::string> text = ReadTextFile(flags.score);
  if (!text.ok()) return text.status();
  Work work{.tenants = {flags.defaults.tenant}};
  work.requests = MakeScoreRequests(tokenizer.Encode(*text), bos,
                                    {.context = flags.context, .windows = flags.windows});
  if (work.requests.empty()) return absl::InvalidArgumentError(flags.score + " is empty");
  return work;
}

// Prints one line to stderr now and then, so that nobody waits in the dark.
class Progress {
 public:
  Progress(Waiter* waiter, size_t total)
      : waiter_(waiter), total_(total), next_(waiter->Now() + kProgressEvery) {}

  void Tick(size_t done, const Engine& engine) {
    const TimePoint now = waiter_->Now();
    if (now < next_) return;
    next_ = now + kProgressEvery;
    std::fprintf(stderr, "kvpool-worker: %zu of %zu done, %zu running, %llu tokens\n", done, total_,
                 engine.running(), static_cast<unsigned long long>(engine.fed_tokens()));
  }

 private:
  Waiter* const waiter_;
  const size_t total_;
  TimePoint next_;
};

// The generated text alone. Decoded together with its prompt, because a piece may begin with a
// space that stands only between words.
std::string GeneratedText(const Tokenizer& tokenizer, const Request& request,
                          const Result& result) {
  std::vector<int32_t> ids = request.prompt;
  const std::string prompt = tokenizer.Decode(ids);
  ids.insert(ids.end(), result.generated.begin(), result.generated.end());
  const std::string all = tokenizer.Decode(ids);
  return all.compare(0, prompt.size(), prompt) == 0 ? all.substr(prompt.size()) : all;
}

absl::StatusOr<Summary> Execute(const Flags& flags, const Tokenizer& tokenizer, Llama& model,
                                const Work& work) {
  BootWaiter waiter;
  absl::StatusOr<std::string> name = ModelName(flags.model, model.config(), flags.prompt);
  if (!name.ok()) return name.status();
  absl::StatusOr<WorkerKv> kv =
      MakeKv(flags.kv, {.geometry = model.config().CacheGeometry(flags.kv.dtype),
                        .tenants = work.tenants,
                        .sessions = flags.batch,
                        .session_tokens = work.session_tokens,
                        .token_flags = TokenClasses(tokenizer, model.config().vocab),
                        .model = *name,
                        .chunk_tokens = flags.chunk});
  if (!kv.ok()) return kv.status();
  std::vector<KvCache*> pointers;
  for (const auto& cache : kv->caches) pointers.push_back(cache.get());

  Summary summary{.kv = flags.kv.kind, .tenants = work.tenants};
  if (!flags.score.empty()) summary.score.emplace();
  size_t done = 0;
  Engine engine(&model, pointers, &waiter,
                {.batch = flags.batch, .chunk = flags.chunk, .prompt = flags.prompt},
                [&](const Result& result) {
                  ++done;
                  if (summary.score) return summary.score->Add(result);
                  const std::string text =
                      GeneratedText(tokenizer, work.requests[result.id], result);
                  const std::string& tenant = work.tenants[result.tenant];
                  std::cout << (flags.output == Output::kJson ? ResultJson(result, tenant, text)
                                                              : ResultText(result, tenant, text))
                            << std::flush;
                });
  Progress progress(&waiter, work.requests.size());
  const TimePoint start = waiter.Now();
  for (const Request& request : work.requests) engine.Submit(request);
  while (engine.Step()) progress.Tick(done, engine);
  summary.seconds = std::chrono::duration<double>(waiter.Now() - start).count();
  summary.steps = engine.steps();
  summary.fed_tokens = engine.fed_tokens();
  for (size_t i = 0; i < work.tenants.size(); ++i) summary.stats.push_back(engine.stats(i));
  return summary;
}

absl::StatusOr<Summary> Run(const Flags& flags) {
  SetMathThreads(flags.threads);
  ThreadPool threads(flags.threads);
  absl::StatusOr<std::unique_ptr<Llama>> model = Llama::Load(flags.model, &threads);
  if (!model.ok()) return model.status();
  std::string error;
  const std::unique_ptr<Tokenizer> tokenizer =
      Tokenizer::Load(flags.model + "/tokenizer.model", &error);
  if (tokenizer == nullptr) return absl::InvalidArgumentError(error);
  const LlamaConfig& config = (*model)->config();
  if (tokenizer->pieces() > config.vocab) {
    return absl::InvalidArgumentError(absl::StrCat(
        flags.model, ": tokenizer.model has ", tokenizer->pieces(),
        " pieces, config.json a vocabulary of ", config.vocab, "; they do not belong together"));
  }
  absl::StatusOr<Work> work = flags.score.empty() ? PlanPrompts(flags, *tokenizer, config.bos)
                                                  : PlanScore(flags, *tokenizer, config.bos);
  if (!work.ok()) return work.status();
  for (const Request& request : work->requests) {
    const uint64_t tokens = request.prompt.size() + request.max_new_tokens;
    if (tokens <= config.max_positions) {
      work->session_tokens = std::max(work->session_tokens, static_cast<uint32_t>(tokens));
    }
  }
  return Execute(flags, *tokenizer, **model, *work);
}

}  // namespace
}  // namespace kvpool

int main(int argc, char** argv) {
  using namespace kvpool;
  CLI::App app(kAbout, "kvpool-worker");
  Flags flags;
  AddFlags(app, flags);
  CLI11_PARSE(app, argc, argv);
  const absl::StatusOr<Summary> summary = Run(flags);
  if (!summary.ok()) {
    std::cerr << "kvpool-worker: " << summary.status().message() << "\n";
    return 1;
  }
  std::cout << (flags.output == Output::kJson ? SummaryJson(*summary) : SummaryText(*summary));
  if (!flags.summary_file.empty()) {
    std::ofstream file(flags.summary_file);
    file << SummaryJson(*summary);
    if (!file.flush()) {
      std::cerr << "kvpool-worker: cannot write " << flags.summary_file << "\n";
      return 1;
    }
  }
  const bool failed = std::any_of(summary->stats.begin(), summary->stats.end(),
                                  [](const TenantStats& s) { return s.failed > 0; });
  return failed ? 3 : 0;
}

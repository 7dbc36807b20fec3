// kvpool-quality: what tenants' policies do to a model's predictions. Feeds the same windows of
// text through a full cache in this process and through each tenant's cache at an agent, and
// prints how they differ, a line of JSON a tenant, after one of what the full cache's own queries
// find important. scripts/quality starts it, and says what for.
//
// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <boost/json.hpp>
#include <cmath>
#include <iostream>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "client/kvpool.h"
#include "common/secret.h"
#include "proto/limits.h"
#include "worker/checkpoint.h"
#include "worker/llama.h"
#include "worker/math.h"
#include "worker/persistence_watch.h"
#include "worker/pool_kv.h"
#include "worker/private_kv.h"
#include "worker/quality_compare.h"
#include "worker/quality_plan.h"
#include "worker/quality_run.h"
#include "worker/token_classes.h"
#include "worker/tokenizer.h"

namespace kvpool {
namespace {

constexpr const char* kAbout =
    "Measures what the policies of tenants do to a model's predictions.\n"
    "\n"
    "  kvpool-quality --model worker/models/prose-5m --text worker/demo/text.txt --agent "
    "agent.sock\n"
    "    --tenant a=a.token --tenant b=b.token\n"
    "\n"
    "Windows of the text, with facts planted in them, are fed through a full cache and through "
    "each\n"
    "tenant's, one tenant after the other. Prints a line of JSON of the persistence of important "
    "keys\nby layer, then one for each tenant.\n";

struct Flags {
  std::string model, agent = "/run/kvpool/agent.sock";
  std::vector<std::string> texts, tenants;
  QualityPlan plan;
  ForcingOptions forcing;
  uint32_t threads = 1;
};

void AddFlags(CLI::App& app, Flags& flags) {
  app.add_option("--model", flags.model, "Directory of the checkpoint")
      ->required()
      ->check(CLI::ExistingDirectory);
  app.add_option("--text", flags.texts, "A text to take windows from; repeatable")
      ->required()
      ->check(CLI::ExistingFile);
  app.add_option("--agent", flags.agent, "The agent's unix socket")->capture_default_str();
  app.add_option("--tenant", flags.tenants, "NAME=FILE with its worker token; repeatable")
      ->required();
  app.add_option("--windows", flags.plan.windows, "Windows, fed together")
      ->check(CLI::Range(1u, limits::kRunningPerWorker))
      ->capture_default_str();
  app.add_option("--context", flags.plan.context, "Tokens of a window, BOS and questions included")
      ->check(CLI::Range(2u, limits::kSessionTokens))
      ->capture_default_str();
  app.add_option("--prompt", flags.plan.prompt, "Of these, fed first and not scored")
      ->check(CLI::Range(1u, limits::kSessionTokens))
      ->capture_default_str();
  app.add_option("--facts", flags.plan.facts, "Facts planted in a prompt, asked at the end")
      ->check(CLI::Range(1u, kMaxFacts))
      ->capture_default_str();
  app.add_option("--seed", flags.plan.seed, "Of the facts and their places")->capture_default_str();
  app.add_option("--chunk", flags.forcing.chunk,
                 "Tokens of a window between two safe points; 1: as in decoding")
      ->check(CLI::Range(1u, 4096u))
      ->capture_default_str();
  app.add_option("--threads", flags.threads, "Threads of the forward pass")
      ->check(CLI::Range(1u, 256u))
      ->capture_default_str();
}

// What is the same for all tenants.
struct Setting {
  std::vector<QualityWindow> windows;
  std::vector<uint8_t> token_flags;
  std::unique_ptr<Llama> model;
  BootWaiter waiter;
};

absl::Status PlanWindows(const Flags& flags, Setting& setting) {
  std::string error;
  const std::unique_ptr<Tokenizer> tokenizer =
      Tokenizer::Load(flags.model + "/tokenizer.model", &error);
  if (tokenizer == nullptr) return absl::InvalidArgumentError(error);
  const LlamaConfig& config = setting.model->config();
  if (tokenizer->pieces() > config.vocab) {
    return absl::InvalidArgumentError(
        absl::StrCat(flags.model, ": tokenizer.model has more pieces than config.json says"));
  }
  if (flags.plan.context > config.max_positions) {
    return absl::InvalidArgumentError(absl::StrCat("--context ", flags.plan.context,
                                                   ": the model's context has ",
                                                   config.max_positions, " tokens"));
  }
  std::vector<std::string> texts;
  for (const std::string& path : flags.texts) {
    absl::StatusOr<std::string> text = ReadTextFile(path);
    if (!text.ok()) return text.status();
    texts.push_back(*std::move(text));
  }
  absl::StatusOr<std::vector<QualityWindow>> windows = PlanQualityWindows(
      texts, [&](const std::string& text) { return tokenizer->EncodeMore(text); }, config.bos,
      flags.plan);
  if (!windows.ok()) return windows.status();
  setting.windows = *std::move(windows);
  setting.token_flags = TokenClasses(*tokenizer, config.vocab);
  return absl::OkStatus();
}

// What the full cache's queries find important, by cached layer.
absl::StatusOr<std::vector<PersistenceCounts>> RunFull(const Flags& flags, Setting& setting,
                                                       FullRun& full) {
  const Geometry geometry = setting.model->config().CacheGeometry(Dtype::kBf16);
  const uint32_t pages = flags.plan.windows * CeilDiv(flags.plan.context, kPageTokens);
  absl::StatusOr<std::unique_ptr<PrivateKv>> kv =
      PrivateKv::Make({.geometry = geometry, .max_pages = pages});
  if (!kv.ok()) return kv.status();
  PersistenceWatch watch(**kv, flags.plan.context);
  const absl::StatusOr<double> seconds =
      ForceWindows(*setting.model, watch, setting.waiter, setting.windows, flags.forcing, full);
  if (!seconds.ok()) return seconds.status();
  return watch.layers();
}

boost::json::object PersistenceJson(const std::vector<PersistenceCounts>& layers) {
  boost::json::array lines;
  for (const PersistenceCounts& layer : layers) {
    lines.push_back({{"persistence", layer.Persistence()}, {"important", layer.Important()}});
  }
  return {{"persistence", std::move(lines)}};
}

boost::json::object TenantJson(const std::string& tenant, const QualityFigures& f,
                               const Layout& layout, double seconds, uint64_t tokens) {
  const auto count = static_cast<double>(f.positions), asked = static_cast<double>(f.asked);
  return {{"tenant", tenant},
          {"positions", f.positions},
          {"kept_ratio", f.rows / f.full_rows},
          {"bytes_ratio", f.bytes / f.full_bytes},
          {"peak_ratio", f.peak_rows / f.peak_full_rows},
          {"kept_bytes", f.bytes / static_cast<double>(f.samples)},
          {"page_bytes", layout.page_bytes().value()},
          {"ppl", f.Perplexity()},
          {"ppl_full", f.PerplexityFull()},
          {"ppl_delta", f.PerplexityDelta()},
          {"ppl_error", f.PerplexityError()},
          {"agreement", static_cast<double>(f.agreed) / count},
          {"kl", f.kl / count},
          {"asked", f.asked},
          {"recall", static_cast<double>(f.recalled) / asked},
          {"recall_full", static_cast<double>(f.recalled_full) / asked},
          {"us_per_token", seconds * 1e6 / static_cast<double>(tokens)}};
}

// One tenant from attach to detach.
absl::StatusOr<boost::json::object> RunTenant(const Flags& flags, Setting& setting,
                                              const FullRun& full, Connection& agent,
                                              const std::string& entry) {
  const size_t equals = entry.find('=');
  if (equals == std::string::npos) {
    return absl::InvalidArgumentError("expected --tenant NAME=FILE");
  }
  absl::StatusOr<std::string> token = ReadTokenFile(entry.substr(equals + 1));
  if (!token.ok()) return token.status();
  absl::StatusOr<std::unique_ptr<Tenant>> attached =
      agent.Attach(*token, {.geometry = setting.model->config().CacheGeometry(Dtype::kBf16),
                            .max_sessions = flags.plan.windows,
                            .max_running = flags.plan.windows,
                            .max_session_tokens = flags.plan.context,
                            .chunk_tokens = std::min(flags.forcing.chunk, flags.plan.context)});
  if (!attached.ok()) return attached.status();
  Tenant& tenant = **attached;
  PoolKv kv(*std::move(attached), setting.token_flags);
  ComparedRun compared(setting.windows, full, tenant.layout(),
                       [&tenant]() -> absl::StatusOr<uint64_t> {
                         absl::StatusOr<TenantStatistics> statistics = tenant.Statistics();
                         if (!statistics.ok()) return statistics.status();
                         return statistics->used_bytes;
                       });
  const absl::StatusOr<double> seconds =
      ForceWindows(*setting.model, kv, setting.waiter, setting.windows, flags.forcing, compared);
  if (!seconds.ok()) return seconds.status();
  if (!std::isfinite(compared.figures().kl)) {
    return absl::DataLossError("the model's predictions under this policy are not finite");
  }
  return TenantJson(entry.substr(0, equals), compared.figures(), tenant.layout(), *seconds,
                    uint64_t{flags.plan.windows} * flags.plan.context);
}

absl::Status Run(const Flags& flags) {
  SetMathThreads(flags.threads);
  ThreadPool threads(flags.threads);
  Setting setting;
  absl::StatusOr<std::unique_ptr<Llama>> model = Llama::Load(flags.model, &threads);
  if (!model.ok()) return model.status();
  setting.model = *std::move(model);
  if (absl::Status status = PlanWindows(flags, setting); !status.ok()) return status;
  FullRun full(setting.windows);
  const absl::StatusOr<std::vector<PersistenceCounts>> layers = RunFull(flags, setting, full);
  if (!layers.ok()) return layers.status();
  std::cout << boost::json::serialize(PersistenceJson(*layers)) << std::endl;

  absl::StatusOr<std::unique_ptr<Connection>> agent =
      Connection::Open({.socket = flags.agent, .worker = "kvpool-quality"});
  if (!agent.ok()) return agent.status();
  for (const std::string& tenant : flags.tenants) {
    absl::StatusOr<boost::json::object> line = RunTenant(flags, setting, full, **agent, tenant);
    if (!line.ok()) {
      return absl::Status(line.status().code(),
                          absl::StrCat("--tenant ", tenant, ": ", line.status().message()));
    }
    std::cout << boost::json::serialize(*line) << std::endl;
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace kvpool

int main(int argc, char** argv) {
  using namespace kvpool;
  CLI::App app(kAbout, "kvpool-quality");
  Flags flags;
  AddFlags(app, flags);
  CLI11_PARSE(app, argc, argv);
  if (absl::Status status = Run(flags); !status.ok()) {
    std::cerr << "kvpool-quality: " << status.message() << "\n";
    return 1;
  }
  return 0;
}

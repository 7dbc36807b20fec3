// Rendering.
//
// SPDX-License-Identifier: Apache-2.0
#include "worker/report.h"

#include <boost/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace kvpool {
namespace {

double PerSecond(const Summary& summary) {
  return summary.seconds > 0 ? summary.fed_tokens / summary.seconds : 0;
}

const char* TenantName(const std::string& name) { return name.empty() ? "-" : name.c_str(); }

}  // namespace

std::string ResultJson(const Result& result, const std::string& tenant, const std::string& text) {
  boost::json::object json = {{"id", result.id},
                              {"tenant", tenant},
                              {"finish", ToString(result.reason)},
                              {"prompt_tokens", result.prompt_tokens},
                              {"tokens", boost::json::value_from(result.generated)},
                              {"text", text}};
  if (!result.text.empty()) json["error"] = result.text;
  return boost::json::serialize(json) + "\n";
}

std::string ResultText(const Result& result, const std::string& tenant, const std::string& text) {
  std::string out =
      absl::StrFormat("--- %d  tenant %s  %s  %d + %d tokens\n", result.id, TenantName(tenant),
                      ToString(result.reason), result.prompt_tokens, result.generated.size());
  if (!result.text.empty()) absl::StrAppend(&out, result.text, "\n");
  if (!text.empty()) absl::StrAppend(&out, text, "\n");
  return out;
}

std::string SummaryJson(const Summary& summary) {
  boost::json::array tenants;
  for (size_t i = 0; i < summary.tenants.size(); ++i) {
    const TenantStats& s = summary.stats[i];
    tenants.push_back(boost::json::object{{"tenant", summary.tenants[i]},
                                          {"finished", s.finished},
                                          {"failed", s.failed},
                                          {"prompt_tokens", s.prompt_tokens},
                                          {"generated_tokens", s.generated_tokens},
                                          {"shared_tokens", s.shared_tokens},
                                          {"refused_opens", s.refused_opens},
                                          {"paused_steps", s.paused_steps},
                                          {"preemptions", s.preemptions},
                                          {"full_cache_bytes", s.full_cache_bytes}});
  }
  boost::json::object json = {{"kv", summary.kv},
                              {"seconds", summary.seconds},
                              {"steps", summary.steps},
                              {"fed_tokens", summary.fed_tokens},
                              {"tokens_per_second", PerSecond(summary)},
                              {"tenants", std::move(tenants)}};
  if (summary.score) {
    json["score"] = boost::json::object{
        {"windows", summary.score->windows},
        {"tokens", summary.score->tokens},
        {"mean_nll", summary.score->MeanNll()},
        {"perplexity",
         summary.score->tokens == 0 ? boost::json::value(nullptr) : summary.score->Perplexity()}};
  }
  return boost::json::serialize(json) + "\n";
}

std::string SummaryText(const Summary& summary) {
  std::string out = absl::StrFormat("%-16s %8s %6s %8s %8s %9s %8s %7s %10s %15s\n", "tenant",
                                    "finished", "failed", "prompt", "shared", "generated",
                                    "refused", "paused", "preempted", "full cache KiB");
  for (size_t i = 0; i < summary.tenants.size(); ++i) {
    const TenantStats& s = summary.stats[i];
    absl::StrAppendFormat(&out, "%-16s %8d %6d %8d %8d %9d %8d %7d %10d %15d\n",
                          TenantName(summary.tenants[i]), s.finished, s.failed, s.prompt_tokens,
                          s.shared_tokens, s.generated_tokens, s.refused_opens, s.paused_steps,
                          s.preemptions, s.full_cache_bytes >> 10);
  }
  absl::StrAppendFormat(&out, "%d tokens through the model in %.2f s, %d steps: %.0f tokens/s\n",
                        summary.fed_tokens, summary.seconds, summary.steps, PerSecond(summary));
  if (summary.score) {
    absl::StrAppendFormat(&out, "%d windows, %d tokens scored", summary.score->windows,
                          summary.score->tokens);
    // Nothing scored says nothing about the model, least of all perplexity 1.
    if (summary.score->tokens > 0) {
      absl::StrAppendFormat(&out, ": mean NLL %.4f, perplexity %.3f", summary.score->MeanNll(),
                            summary.score->Perplexity());
    }
    out += "\n";
  }
  return out;
}

}  // namespace kvpool

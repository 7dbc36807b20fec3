// What a run of the worker prints: one result at a time, and a summary at the end, for people and
// as JSON.
//
// Pure; values, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "worker/engine.h"
#include "worker/score.h"

namespace kvpool {

struct Summary {
  std::string kv;  // which memory
  double seconds = 0;
  uint64_t steps = 0;
  uint64_t fed_tokens = 0;  // through the model, prompt, generated and fed anew
  std::vector<std::string> tenants;
  std::vector<TenantStats> stats;  // of each tenant
  std::optional<Score> score;
};

// One line of JSON: id, tenant, finish, prompt_tokens, tokens, text; error when it went wrong.
std::string ResultJson(const Result& result, const std::string& tenant, const std::string& text);
// A heading and the text.
std::string ResultText(const Result& result, const std::string& tenant, const std::string& text);

// {kv, seconds, steps, tokens_per_second, tenants: [{tenant, finished, ...}], score?: {...}}.
std::string SummaryJson(const Summary& summary);
// A table with a row per tenant, and the score.
std::string SummaryText(const Summary& summary);

}  // namespace kvpool

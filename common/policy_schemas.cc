// The table of policies: names, parameters, bounds and the rules between them. The class behind a
// name is made in kernels/policy/policy.cc. What every policy has (its format) is added at the end.
//
// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/policy_spec.h"

namespace kvpool {
namespace {

constexpr int64_t kMaxTokens = 1 << 20;
// R-KV compares each key with up to 2048 others of its head (kernels/policy/rkv.h), on one thread.
constexpr int64_t kMaxCompared = 4096;
constexpr int64_t kExpectedAttentionSinks = 4;

absl::Status ScissorhandsRules(PolicySpec& spec) {
  const int64_t budget = spec.Integer("budget"), recent = spec.Integer("recent");
  if (spec.Integer("drop") == 0) spec.parameters["drop"] = budget / 2;
  const int64_t drop = spec.Integer("drop");
  if (recent + drop <= budget) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("recent + drop must not exceed budget, got ",
                                                 recent, " + ", drop, " > ", budget));
}

absl::Status RecentWithinBudget(PolicySpec& spec) {
  const int64_t budget = spec.Integer("budget"), recent = spec.Integer("recent");
  if (recent <= budget) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("recent must not exceed budget, got ", recent, " > ", budget));
}

absl::Status SinksAndRecentWithinBudget(PolicySpec& spec) {
  const int64_t budget = spec.Integer("budget"), sinks = spec.Integer("sinks");
  const int64_t recent = spec.Integer("recent");
  if (sinks + recent <= budget) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("sinks + recent must not exceed budget, got ",
                                                 sinks, " + ", recent, " > ", budget));
}

// The parameters of policies that look at the prompt's last queries, and `more`.
std::vector<PolicyParameter> ObservationParameters(int64_t budget, int64_t window, int64_t kernel,
                                                   const std::string& pooling,
                                                   std::vector<PolicyParameter> more = {}) {
  std::vector<PolicyParameter> parameters = {
      {"budget", "tokens", "keys of the prompt that stay, the mean over heads",
       IntegerRange{budget, 16, kMaxTokens}},
      {"window", "queries", "last queries of the prompt that vote; as many newest keys stay",
       IntegerRange{window, 1, 256}},
      {"pooling", "", "how scores are smoothed along positions",
       Choices{{pooling, pooling == "max" ? "average" : "max"}}},
      {"kernel", "tokens", "width of the smoothing, odd", IntegerRange{kernel, 1, 63}}};
  parameters.insert(parameters.end(), more.begin(), more.end());
  return parameters;
}

absl::Status WindowWithinBudget(PolicySpec& spec) {
  const int64_t budget = spec.Integer("budget"), window = spec.Integer("window");
  if (window > budget) {
    return absl::InvalidArgumentError(
        absl::StrCat("window must not exceed budget, got ", window, " > ", budget));
  }
  if (spec.Integer("kernel") % 2 == 1) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("kernel must be odd, got ", spec.Integer("kernel")));
}

// What expected-attention names besides, adakv names for it.
absl::Status AdaKvRules(PolicySpec& spec) {
  if (absl::Status status = WindowWithinBudget(spec); !status.ok()) return status;
  const int64_t budget = spec.Integer("budget"), window = spec.Integer("window");
  if (spec.Choice("scorer") != "expected-attention") return absl::OkStatus();
  if (kExpectedAttentionSinks + window <= budget) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "with expected-attention its ", kExpectedAttentionSinks,
      " sinks and the window must not exceed budget, got window ", window, " of ", budget));
}

std::vector<PolicyParameter> FastGenParameters() {
  return {{"recovery", "", "T: share of the prompt's attention that a head must keep",
           NumberRange{0.95, 0, 1}},
          {"local", "", "r_l: share of the length that is local", NumberRange{0.3, 0, 1}},
          {"frequent", "", "r_f: share of the length that is frequent", NumberRange{0.3, 0, 1}},
          {"group", "", "which of a KV head's query heads must reach T: the least, or their mean",
           Choices{{"min", "mean"}}},
          {"profile", "", "exact: every row of the prompt; sampled: one in 8, approximate",
           Choices{{"exact", "sampled"}}},
          {"slack", "tokens", "growth between two compactions", IntegerRange{64, 1, kMaxTokens}}};
}

// Policies that keep a session within bounds as it grows, by attention or by place.
std::vector<PolicySchema> GrowthPolicies() {
  return {
      {"full",
       "Keeps every key; never compacted.",
       {{"recovery_every", "queries", "one query in this many is scored, for recovery; 0: none",
         IntegerRange{16, 0, 65535}}}},
      {"streaming",
       "StreamingLLM (arXiv 2309.17453): the first `sinks` and the last `recent` keys.",
       {{"sinks", "tokens", "first keys that always stay", IntegerRange{4, 0, kMaxTokens}},
        {"recent", "tokens", "newest keys that always stay", IntegerRange{252, 1, kMaxTokens}},
        {"slack", "tokens", "growth between two compactions", IntegerRange{64, 1, kMaxTokens}}}},
      {"scissorhands",
       "Scissorhands (arXiv 2305.17118, Alg. 1 and 2): at most `budget` keys a head.",
       {{"budget", "tokens", "B: most keys a head may hold", IntegerRange{256, 32, kMaxTokens}},
        {"window", "queries", "w: how many last queries vote", IntegerRange{400, 1, 65535}},
        {"recent", "tokens", "r: newest keys that always stay", IntegerRange{10, 1, kMaxTokens}},
        {"drop", "tokens", "m: keys dropped at a compaction; 0 means budget / 2",
         IntegerRange{0, 0, kMaxTokens}},
        {"layers", "", "budgets of layers: alike, or more where important keys change more",
         Choices{{"even", "persistence"}}},
        {"gain", "", "for persistence: how much more", NumberRange{1, 0, 16}}},
       ScissorhandsRules},
      {"corm",
       "CORM (arXiv 2404.15949): keys that one of the last `window` queries found important.",
       {{"window", "queries", "w: how many last queries vote", IntegerRange{256, 1, 32768}},
        {"recent", "tokens", "r: newest keys that always stay", IntegerRange{256, 1, kMaxTokens}},
        {"slack", "tokens", "growth between two compactions", IntegerRange{64, 1, kMaxTokens}},
        {"threshold", "", "important is alpha >= 1 / step, or 1 / keys seen",
         Choices{{"inv_step", "inv_cached"}}}}},
      {"h2o",
       "H2O (arXiv 2306.14048): the newest keys and those that got most attention so far.",
       {{"budget", "tokens", "keys that stay", IntegerRange{256, 16, kMaxTokens}},
        {"recent", "tokens", "newest keys among them", IntegerRange{128, 1, kMaxTokens}},
        {"slack", "tokens", "growth between two compactions", IntegerRange{64, 1, kMaxTokens}}},
       RecentWithinBudget},
      {"tova",
       "TOVA (arXiv 2401.06104): keys that the last query looked at, the same in all heads.",
       {{"budget", "tokens", "keys that stay", IntegerRange{256, 16, kMaxTokens}},
        {"slack", "tokens", "growth between two compactions", IntegerRange{64, 1, kMaxTokens}}}},
  };
}

// Policies that look at the prompt and act at its end.
std::vector<PolicySchema> PromptPolicies() {
  return {
      {"snapkv", "SnapKV (arXiv 2404.14469): of the prompt, what its last queries looked at; once.",
       ObservationParameters(1024, 32, 5, "average"), WindowWithinBudget},
      {"pyramidkv",
       "PyramidKV (arXiv 2406.02069): SnapKV with more for lower layers, less for higher ones.",
       ObservationParameters(
           1024, 8, 5, "average",
           {{"beta", "", "the highest layer keeps (budget - window) / beta beside the window",
             IntegerRange{20, 1, 1024}}}),
       WindowWithinBudget},
      {"adakv", "Ada-KV (arXiv 2407.11550): the heads of a layer share its budget by their scores.",
       ObservationParameters(
           1024, 32, 7, "max",
           {{"scorer", "", "the policy whose scores rank the keys; only the first two are smoothed",
             Choices{{"snapkv", "kvcompress", "h2o", "knorm", "keydiff", "expected-attention"}}},
            {"floor", "", "part of its even share that a head keeps at least",
             NumberRange{0.2, 0, 1}},
            {"rope_theta", "", "for expected-attention: the model's base of rotation",
             NumberRange{10000, 1, 1e9}}}),
       AdaKvRules},
      {"kvcompress",
       "KV-Compress (arXiv 2410.00161): best squared attention over all layers and heads.",
       ObservationParameters(1024, 8, 7, "max",
                             {{"votes", "", "which queries of the prompt: the window, or all",
                               Choices{{"window", "all"}}}}),
       WindowWithinBudget},
      {"fastgen", "FastGen (arXiv 2310.01801): a class for each head, by the prompt's attention.",
       FastGenParameters()},
  };
}

// Policies that keep a session within bounds by chance or by what its keys are.
std::vector<PolicySchema> KeyPolicies() {
  return {
      {"random",
       "The newest keys and a random choice of the others: the yardstick at the same budget.",
       {{"budget", "tokens", "keys that stay", IntegerRange{256, 16, kMaxTokens}},
        {"recent", "tokens", "newest keys among them", IntegerRange{32, 1, kMaxTokens}},
        {"slack", "tokens", "growth between two compactions", IntegerRange{64, 16, kMaxTokens}},
        {"seed", "", "another number, another choice", IntegerRange{0, 0, 65535}}},
       RecentWithinBudget},
      {"knorm",
       "KNorm (arXiv 2406.11430): keys of low norm, which get most attention.",
       {{"budget", "tokens", "keys that stay", IntegerRange{256, 16, kMaxTokens}},
        {"recent", "tokens", "newest keys among them", IntegerRange{32, 1, kMaxTokens}},
        {"slack", "tokens", "growth between two compactions", IntegerRange{64, 16, kMaxTokens}}},
       RecentWithinBudget},
      {"keydiff",
       "KeyDiff (arXiv 2504.15364): keys that are least like the mean of all.",
       {{"budget", "tokens", "keys that stay", IntegerRange{256, 16, kMaxTokens}},
        {"recent", "tokens", "newest keys among them", IntegerRange{32, 1, kMaxTokens}},
        {"slack", "tokens", "B: growth between two compactions",
         IntegerRange{128, 16, kMaxTokens}}},
       RecentWithinBudget},
      {"expected-attention",
       "Expected Attention (arXiv 2510.00636): keys that future queries are expected to look at.",
       {{"budget", "tokens", "keys that stay", IntegerRange{256, 16, kMaxTokens}},
        {"sinks", "tokens", "first keys among them",
         IntegerRange{kExpectedAttentionSinks, 0, kMaxTokens}},
        {"recent", "tokens", "newest keys among them", IntegerRange{28, 1, kMaxTokens}},
        {"slack", "tokens", "growth between two compactions", IntegerRange{64, 16, kMaxTokens}},
        {"horizon", "tokens", "T: future positions that are averaged over",
         IntegerRange{512, 1, 65536}},
        {"epsilon", "", "attention that every key is given beside", NumberRange{0.02, 0, 1}},
        {"queries", "queries", "kept queries that tell the distribution",
         IntegerRange{64, 1, 1024}},
        {"every", "queries", "one query in this many is kept", IntegerRange{8, 1, 64}},
        {"rope_theta", "", "the model's base of rotation", NumberRange{10000, 1, 1e9}}},
       SinksAndRecentWithinBudget},
      {"rkv",
       "R-KV (arXiv 2505.24133): keys that the last queries looked at and that repeat no other.",
       {{"budget", "tokens", "keys that stay", IntegerRange{256, 16, kMaxCompared}},
        {"buffer", "tokens", "growth between two compactions", IntegerRange{128, 16, kMaxCompared}},
        {"window", "queries", "last queries that vote; as many newest keys stay",
         IntegerRange{8, 1, 256}},
        {"kernel", "tokens", "width of the maximum along positions, odd", IntegerRange{7, 1, 63}},
        {"lambda", "", "weight of attention; the rest is that of redundancy",
         NumberRange{0.1, 0, 1}},
        {"threshold", "", "cosine above which two keys say the same", NumberRange{0.5, 0, 1}}},
       WindowWithinBudget},
  };
}

}  // namespace

// In what the rows lie that a policy keeps; read by SealRuleOf (kernels/policy/policy.h).
const std::vector<PolicyParameter>& CommonPolicyParameters() {
  static const auto* const parameters = new std::vector<PolicyParameter>{
      {"format", "", "what a session's older rows are quantised to",
       Choices{{"native", "fp8", "int8", "int4"}}},
      {"open", "tokens", "last rows of a head that stay native; only with a format",
       IntegerRange{128, 0, kMaxTokens}}};
  return *parameters;
}

const std::vector<PolicySchema>& PolicySchemas() {
  static const auto* const schemas = [] {
    auto* const all = new std::vector<PolicySchema>;
    for (const auto group : {GrowthPolicies, PromptPolicies, KeyPolicies}) {
      for (PolicySchema& schema : group()) {
        for (const PolicyParameter& common : CommonPolicyParameters()) {
          schema.parameters.push_back(common);
        }
        if (group == PromptPolicies) schema.acts = Acts::kPrompt;
        all->push_back(std::move(schema));
      }
    }
    return all;
  }();
  return *schemas;
}

}  // namespace kvpool

// The table of policies: names, parameters, bounds and the rules between them. The class behind a
// name is made in kernels/policy/policy.cc.
//
// SPDX-License-Identifier: Apache-2.0
#include "absl/strings/str_cat.h"
#include "common/policy_spec.h"

namespace kvpool {
namespace {

constexpr int64_t kMaxTokens = 1 << 20;
// R-KV compares each key with every other one of its head.
constexpr int64_t kMaxCompared = 4096;

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

absl::Status RkvRules(PolicySpec& spec) {
  const int64_t budget = spec.Integer("budget"), window = spec.Integer("window");
  if (window > budget) {
    return absl::InvalidArgumentError(
        absl::StrCat("window must not exceed budget, got ", window, " > ", budget));
  }
  if (spec.Integer("kernel") % 2 == 1) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("kernel must be odd, got ", spec.Integer("kernel")));
}

}  // namespace

const std::vector<PolicySchema>& PolicySchemas() {
  static const auto* const schemas = new std::vector<PolicySchema>{
      {"full",
       "Keeps every key; never compacted.",
       {{"recovery_every", "queries", "one query in this many is scored, for recovery; 0: none",
         IntegerRange{16, 0, 65535}}}},
      {"streaming",
       "StreamingLLM (arXiv 2309.17453): the first `sinks` and the last `recent` keys.",
       {{"sinks", "tokens", "first keys that always stay", IntegerRange{4, 0, kMaxTokens}},
        {"recent", "tokens", "newest keys that always stay", IntegerRange{252, 1, kMaxTokens}},
        {"slack", "tokens", "growth between two compactions", IntegerRange{64, 16, kMaxTokens}}}},
      {"scissorhands",
       "Scissorhands (arXiv 2305.17118, Alg. 1 and 2): at most `budget` keys a head.",
       {{"budget", "tokens", "B: most keys a head may hold", IntegerRange{256, 32, kMaxTokens}},
        {"window", "queries", "w: how many last queries vote", IntegerRange{400, 1, 65535}},
        {"recent", "tokens", "r: newest keys that always stay", IntegerRange{10, 1, kMaxTokens}},
        {"drop", "tokens", "m: keys dropped at a compaction; 0 means budget / 2",
         IntegerRange{0, 0, kMaxTokens}}},
       ScissorhandsRules},
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
        {"sinks", "tokens", "first keys among them", IntegerRange{4, 0, kMaxTokens}},
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
       RkvRules},
  };
  return *schemas;
}

}  // namespace kvpool

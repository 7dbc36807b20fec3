// The built-in ladder, and the checks on one that an operator wrote.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/policy_ladder.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

NamedRung Recent(int64_t tokens) {
  return {.name = absl::StrCat("recent-", tokens),
          .policy = *MakePolicySpec("streaming", {{"recent", tokens - 4},
                                                  {"sinks", int64_t{4}},
                                                  {"slack", tokens / 8},
                                                  {"format", std::string("int4")}}),
          .why = absl::StrCat("int4, and the first 4 and newest ", tokens - 4,
                              " keys: bounds what a session is charged")};
}

// How dense rows lie, for the rule that formats only get denser.
int Density(const std::string& format) {
  if (format == "native") return 0;
  return format == "int4" ? 2 : 1;
}

// By which threshold a policy counts keys as important; none: it does not.
std::optional<std::string> ThresholdOf(const PolicySpec& spec) {
  if (spec.name == "scissorhands") return "inv_step";
  if (spec.name == "corm") return spec.Choice("threshold");
  return std::nullopt;
}

absl::Status Refuse(size_t rung, const PolicySpec& spec, const std::string& why) {
  return absl::InvalidArgumentError(
      absl::StrCat("policy auto: allowed[", rung, "], ", spec.name, ": ", why));
}

absl::Status CheckPair(size_t rung, const PolicySpec& before, const PolicySpec& spec) {
  if (spec == before) {
    return Refuse(rung, spec, "is there twice; leave one out, or give it other parameters");
  }
  const std::string &was = before.Choice("format"), &is = spec.Choice("format");
  if (is != was && Density(is) <= Density(was)) {
    return Refuse(rung, spec,
                  absl::StrCat("its format ", is, " is not denser than ", was,
                               " of a rung before it; formats may only go from native to fp8 or "
                               "int8 to int4"));
  }
  const auto counted = ThresholdOf(before), counts = ThresholdOf(spec);
  if (counted.has_value() && counts.has_value() && *counted != *counts) {
    return Refuse(rung, spec,
                  absl::StrCat("it counts important keys by ", *counts, ", and ", before.name,
                               " before it by ", *counted, "; a session counts them once"));
  }
  return absl::OkStatus();
}

}  // namespace

// What each saves and costs was measured with a small model, whose order of policies is all that
// is taken from it. Formats first: at as many bytes they lose least by far (docs/quality.md: int8
// 72 % of the bytes for no perplexity, int4 50 % for 0.1 %, against 1.8 % of streaming). Then
// budgets, halved at each step, by `streaming`: among those that keep a bounded number of keys it
// loses about as little attention as h2o and scissorhands at as many bytes, needs no exact queries
// of the worker, and so costs a tenant nothing while it is not used.
const std::vector<NamedRung>& BuiltInRungs() {
  static const auto* const rungs = new std::vector<NamedRung>{
      {.name = "full", .policy = DefaultPolicySpec(), .why = "loses nothing"},
      {.name = "int8",
       .policy = *MakePolicySpec("full", {{"format", std::string("int8")}}),
       .why = "72 % of the bytes, perplexity +0.00 %"},
      {.name = "int4",
       .policy = *MakePolicySpec("full", {{"format", std::string("int4")}}),
       .why = "50 % of the bytes, perplexity +0.1 %"},
      Recent(8192),
      Recent(4096),
      Recent(2048),
      Recent(1024),
      Recent(512)};
  return *rungs;
}

std::vector<PolicySpec> DefaultRungs() {
  std::vector<PolicySpec> rungs;
  for (const NamedRung& rung : BuiltInRungs()) rungs.push_back(rung.policy);
  return rungs;
}

absl::StatusOr<PolicySpec> FindRung(const std::string& name) {
  for (const NamedRung& rung : BuiltInRungs()) {
    if (rung.name == name) return rung.policy;
  }
  const std::string names = absl::StrJoin(
      BuiltInRungs(), ", ", [](std::string* out, const NamedRung& rung) { *out += rung.name; });
  return absl::InvalidArgumentError(absl::StrCat(
      "policy auto: allowed: \"", name, "\" is no rung of the built-in ladder, which are ", names,
      "; write any other policy as {name: ..., ...}"));
}

absl::StatusOr<double> ParseRecoveryFloor(const PolicyValue& value) {
  std::optional<double> number;
  if (const auto* const whole = std::get_if<int64_t>(&value)) number = static_cast<double>(*whole);
  if (const auto* const real = std::get_if<double>(&value)) number = *real;
  if (const auto* const text = std::get_if<std::string>(&value)) {
    double parsed = 0;
    const char* const end = text->data() + text->size();
    const auto [rest, code] = std::from_chars(text->data(), end, parsed);
    if (code == std::errc() && rest == end) number = parsed;
  }
  // Written so that NaN is outside.
  if (number.has_value() && *number >= 0 && *number <= 1) return *number;
  return absl::InvalidArgumentError(absl::StrCat(
      "policy auto: min_recovery = ", ToString(value),
      " is not allowed; it must be 0..1, such as 0.95: the share of attention that stays"));
}

absl::Status CheckLadder(const PolicyLadder& ladder) {
  if (const auto floor = ParseRecoveryFloor(ladder.min_recovery); !floor.ok()) {
    return floor.status();
  }
  if (ladder.rungs.empty()) {
    return absl::InvalidArgumentError(
        "policy auto: allowed is empty; name a policy, or leave it out for the built-in ladder");
  }
  if (ladder.rungs.size() > limits::kRungs) {
    return absl::InvalidArgumentError(absl::StrCat("policy auto: ", ladder.rungs.size(),
                                                   " policies are too many; at most ",
                                                   limits::kRungs, " are allowed"));
  }
  for (size_t rung = 0; rung < ladder.rungs.size(); ++rung) {
    const PolicySpec& spec = ladder.rungs[rung];
    if (ActsOn(spec) == Acts::kPrompt) {
      return Refuse(rung, spec,
                    "it acts on the prompt alone, so it cannot shrink sessions that run; use "
                    "streaming, h2o, scissorhands or another that keeps a budget");
    }
    for (size_t before = 0; before < rung; ++before) {
      if (absl::Status status = CheckPair(rung, ladder.rungs[before], spec); !status.ok()) {
        return status;
      }
    }
  }
  return absl::OkStatus();
}

std::string ToString(const PolicyLadder& ladder) {
  return absl::StrCat("auto(min_recovery=", ToString(PolicyValue(ladder.min_recovery)), "): ",
                      absl::StrJoin(ladder.rungs, " > ", [](std::string* out, const auto& rung) {
                        *out += ToString(rung);
                      }));
}

}  // namespace kvpool

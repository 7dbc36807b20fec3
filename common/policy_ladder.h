// What an operator says of a policy that follows pressure: `auto`, its policies from mild to strong
// (the rungs), and how much attention they must leave. Which rung a tenant is on is the manager's
// (manager/rung_choice.h); what the floor means to a session is the agent's (agent/ladder.h).
//
//   policy: {name: auto, min_recovery: 0.95}
//   policy: {name: auto, min_recovery: 0.9, allowed: [full, int8, {name: h2o, budget: 2048,
//            format: int8}]}
//
// Values, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/policy_spec.h"

namespace kvpool {

// The name under which an operator asks for a ladder, where a policy's name belongs.
inline constexpr char kAutoPolicy[] = "auto";

struct PolicyLadder {
  // What the running product of recovery over a session's compactions, as the mean over its heads,
  // does not fall below; 0: whatever it comes to.
  double min_recovery = 1;
  std::vector<PolicySpec> rungs;  // mild first; a session begins on the tenant's rung

  bool operator==(const PolicyLadder&) const = default;
};

// A rung of the built-in ladder: what `allowed` may name, and its ladder where it is left out.
struct NamedRung {
  std::string name;
  PolicySpec policy;
  std::string why;  // one line: what it saves and costs, by docs/quality.md
};
const std::vector<NamedRung>& BuiltInRungs();

// The built-in ladder.
std::vector<PolicySpec> DefaultRungs();
// InvalidArgument lists the names.
absl::StatusOr<PolicySpec> FindRung(const std::string& name);

// A number, or text that is one, of 0..1. InvalidArgument says so.
absl::StatusOr<double> ParseRecoveryFloor(const PolicyValue& value);

// InvalidArgument says which rung cannot stand where it does, and what to do:
// - none, more than limits::kRungs, or two that are the same;
// - a policy that acts on the prompt alone: it cannot shrink sessions that run;
// - a format that is not denser than the one before, or the same: live sessions only climb, and
//   rewriting sealed rows in a wider format would make them larger;
// - different thresholds of importance: a session has one set of statistics.
absl::Status CheckLadder(const PolicyLadder& ladder);

// "auto(min_recovery=0.95): full(...) > streaming(...)"
std::string ToString(const PolicyLadder& ladder);

}  // namespace kvpool

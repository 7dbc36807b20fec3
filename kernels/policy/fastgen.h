// fastgen: FastGen (arXiv 2310.01801, Algorithms 1 and 2): each KV head keeps, for the whole
// session, the cheapest of {special, + punctuation, + frequent, + local, all} that would have kept
// the share T of the prompt's attention (kernels/profile.h).
//
// Parameters: recovery T, local r_l, frequent r_f (shares of the current length), group (with
// grouped queries, which the paper leaves open: the least of a KV head's query heads must reach T,
// or their mean), profile (exact: all rows of the prompt; sampled: one in kSampledProfile, which is
// an approximation), slack (growth between two compactions; the paper evicts every step, slack =
// 1).
//
// Frequency is the attention that a key has had: the prompt's from the profile, then of every
// query, exact at drain granularity. The prompt's last queries are pushed besides, for recovery
// alone. Until there is a profile, and without one for good, a session is as full as under `full`.
// A head may always turn out to need all of its keys, so admission charges the whole length.
//
// Immutable, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/policy/policy.h"
#include "kernels/profile.h"

namespace kvpool {

// profile = sampled: one row in this many.
inline constexpr uint32_t kSampledProfile = 8;

class FastGenPolicy : public Policy {
 public:
  explicit FastGenPolicy(const PolicySpec& spec);

  PolicyNeeds Needs() const override;
  uint32_t PeakTokens(const SessionPlan& plan) const override { return plan.max_tokens; }
  std::optional<uint32_t> NextCompactAt(const PolicyState& state) const override;
  std::optional<Selection> Compact(const PolicyState& state) const override;

 private:
  HeadRule Rule(HeadClass head_class, uint32_t length) const;

  ProfileRule profile_;
  uint32_t slack_;
};

}  // namespace kvpool

// corm: CORM (arXiv 2404.15949, section 4, "budget-unrestricted" eviction): a key stays while one
// of the last w queries found it important (alpha >= 1 / t), and the newest r always do. There is
// no budget: a head keeps as many keys as its queries ask for, so admission charges the session's
// longest length.
//
// Parameters: window w, recent r, slack (growth between two compactions; the paper evicts at every
// step, which is slack = 1), threshold: inv_step takes t as the absolute step, as the paper's
// argument list says; inv_cached as the number of keys that the query saw, which keeps less and is
// free of scale.
//
// The paper's message M, one bit for each of the last w queries and each key, is kept as the step
// of the key's last hit: "any bit set" is the same as "the last hit is less than w steps old". With
// grouped queries a key is important if any query head of the group says so. Nothing goes before w
// queries were scored. Every query is scored exactly once (QueryNeed::kExact).
//
// Immutable, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/policy/policy.h"

namespace kvpool {

class CormPolicy : public Policy {
 public:
  explicit CormPolicy(const PolicySpec& spec);
  PolicyNeeds Needs() const override;
  uint32_t PeakTokens(const SessionPlan& plan) const override { return plan.max_tokens; }
  std::optional<uint32_t> NextCompactAt(const PolicyState& state) const override;
  std::optional<Selection> Compact(const PolicyState& state) const override;

 private:
  const uint32_t window_, recent_, slack_;
  const Threshold threshold_;
};

}  // namespace kvpool

// Policies by name, and what they say of a session that stands still: one head of rows that a test
// makes up, with nothing fed or scored. See policy_session.h for one that lives. Test code.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/policy/policy.h"
#include "tests/kernels/test_session.h"

namespace kvpool {

inline std::unique_ptr<const Policy> Make(const std::string& name, const PolicyValues& parameters) {
  return MakePolicy(*MakePolicySpec(name, parameters));
}

inline const Geometry kOneHead = TestGeometry(1, 1, 1, 8, 8, Dtype::kF32);

inline std::optional<Selection> CompactAt(const Policy& policy, uint32_t length) {
  return policy.Compact({.geometry = &kOneHead, .step = length, .length = length});
}

inline std::vector<KeepRows> SelectNow(const Policy& policy, const Planes& planes) {
  const Selection selection = *CompactAt(policy, planes.rows(0));
  return Select(selection, kOneHead, planes, PlaneScores(selection.score, planes));
}

}  // namespace kvpool

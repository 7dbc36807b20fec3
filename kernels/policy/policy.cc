// Makes policies from specs: the one list of classes behind the names of common/policy_spec.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/policy/policy.h"

#include "kernels/policy/full.h"
#include "kernels/policy/scissorhands.h"
#include "kernels/policy/streaming.h"

namespace kvpool {

std::unique_ptr<const Policy> MakePolicy(const PolicySpec& spec) {
  const auto get = [&](const char* name) { return static_cast<uint32_t>(spec.Integer(name)); };
  if (spec.name == "streaming") {
    return std::make_unique<StreamingPolicy>(get("sinks"), get("recent"), get("slack"));
  }
  if (spec.name == "scissorhands") {
    return std::make_unique<ScissorhandsPolicy>(get("budget"), get("window"), get("recent"),
                                                get("drop"));
  }
  return std::make_unique<FullPolicy>(get("recovery_every"));
}

}  // namespace kvpool

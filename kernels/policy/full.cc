// See full.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/policy/full.h"

namespace kvpool {

FullPolicy::FullPolicy(const PolicySpec& spec) : recovery_every_(spec.Count("recovery_every")) {}

PolicyNeeds FullPolicy::Needs() const {
  if (recovery_every_ == 0) return {.queries = QueryNeed::kNone};
  return {.queries = QueryNeed::kSampled, .sample_every = recovery_every_};
}

}  // namespace kvpool

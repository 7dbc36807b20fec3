// The registry: the class behind each name of common/policy_schemas.cc.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/policy/policy.h"

#include <string>

#include "kernels/policy/expected_attention.h"
#include "kernels/policy/full.h"
#include "kernels/policy/keydiff.h"
#include "kernels/policy/knorm.h"
#include "kernels/policy/random.h"
#include "kernels/policy/rkv.h"
#include "kernels/policy/scissorhands.h"
#include "kernels/policy/streaming.h"

namespace kvpool {
namespace {

template <typename T>
std::unique_ptr<const Policy> Make(const PolicySpec& spec) {
  return std::make_unique<const T>(spec);
}

struct Row {
  const char* name;
  std::unique_ptr<const Policy> (*make)(const PolicySpec& spec);
};

constexpr Row kPolicies[] = {
    {"full", Make<FullPolicy>},
    {"streaming", Make<StreamingPolicy>},
    {"scissorhands", Make<ScissorhandsPolicy>},
    {"random", Make<RandomPolicy>},
    {"knorm", Make<KNormPolicy>},
    {"keydiff", Make<KeyDiffPolicy>},
    {"expected-attention", Make<ExpectedAttentionPolicy>},
    {"rkv", Make<RkvPolicy>},
};

}  // namespace

std::unique_ptr<const Policy> MakePolicy(const PolicySpec& spec) {
  for (const Row& row : kPolicies) {
    if (spec.name == row.name) return row.make(spec);
  }
  return nullptr;
}

}  // namespace kvpool

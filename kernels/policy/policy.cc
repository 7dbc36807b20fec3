// The registry: the class behind each name of common/policy_schemas.cc.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/policy/policy.h"

#include <string>

#include "kernels/policy/adakv.h"
#include "kernels/policy/corm.h"
#include "kernels/policy/expected_attention.h"
#include "kernels/policy/fastgen.h"
#include "kernels/policy/full.h"
#include "kernels/policy/h2o.h"
#include "kernels/policy/keydiff.h"
#include "kernels/policy/knorm.h"
#include "kernels/policy/kvcompress.h"
#include "kernels/policy/pyramidkv.h"
#include "kernels/policy/random.h"
#include "kernels/policy/rkv.h"
#include "kernels/policy/scissorhands.h"
#include "kernels/policy/snapkv.h"
#include "kernels/policy/streaming.h"
#include "kernels/policy/tova.h"

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
    {"corm", Make<CormPolicy>},
    {"h2o", Make<H2oPolicy>},
    {"tova", Make<TovaPolicy>},
    {"snapkv", Make<SnapKvPolicy>},
    {"pyramidkv", Make<PyramidKvPolicy>},
    {"adakv", Make<AdaKvPolicy>},
    {"kvcompress", Make<KvCompressPolicy>},
    {"fastgen", Make<FastGenPolicy>},
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

SealRule SealRuleOf(const PolicySpec& spec) {
  for (SealedFormat format : kSealedFormats) {
    if (spec.Choice("format") == NameOf(format)) {
      return {.format = format, .open_rows = spec.Count("open")};
    }
  }
  return {};
}

}  // namespace kvpool

// To be included by each test that runs on every vector target: one test for each target of the
// build, skipped where this processor cannot run it, so that what was left out is to be seen.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "kernels/simd/targets.h"

namespace kvpool {

class VectorTargets : public testing::TestWithParam<const char*> {};

TEST_P(VectorTargets, IsTestedHere) {
  const std::string name = GetParam();
  const bool runs = std::ranges::any_of(
      simd::Targets(), [&](const simd::Target& target) { return target.name == name; });
  if (!runs) {
    GTEST_SKIP() << "this processor lacks what " << name << " needs: none of these tests ran on it";
  }
}

INSTANTIATE_TEST_SUITE_P(OfTheBuild, VectorTargets, testing::ValuesIn(simd::kTargetNames),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace kvpool

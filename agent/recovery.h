// Recovery per (layer, head), as numbers: what one compaction kept, and the running product over a
// session's compactions. A negative value was not measured. Pure, any thread. What recovery is and
// where it comes from is kernels/selection.h's.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace kvpool {

// A mean and a minimum over what was measured; negative when nothing was.
struct RecoveryStats {
  float mean = -1;
  float min = -1;
  uint32_t count = 0;  // of what was measured: heads, or sessions

  bool measured() const { return count > 0; }
  // As if what the two were measured over had been one set.
  void Add(const RecoveryStats& other);
};

// Over heads.
RecoveryStats StatsOf(std::span<const float> heads);
// Over sessions: the mean of their means, the least of their minima.
RecoveryStats StatsOf(std::span<const RecoveryStats> sessions);

// Takes one more compaction into a session's running product, empty before the first. A head that
// was not measured stays as it was: an estimate cannot know better.
void MultiplyRecovery(std::span<const float> heads, std::vector<float>* product);

}  // namespace kvpool

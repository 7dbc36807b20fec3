// See prompt_once.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/policy/prompt_once.h"

namespace kvpool {

ObservationWindow MakeObservationWindow(const PolicySpec& spec) {
  return {.window = spec.Count("window"),
          .pooling = spec.Choice("pooling") == "max" ? RowScore::Pooling::kMax
                                                     : RowScore::Pooling::kAverage,
          .kernel = spec.Count("kernel")};
}

}  // namespace kvpool

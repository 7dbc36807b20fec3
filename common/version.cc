// The only file that is compiled again when the version changes.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/version.h"

namespace kvpool {

const char* Version() { return KVPOOL_VERSION; }

}  // namespace kvpool

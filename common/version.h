// The version of this build. Any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace kvpool {

// "0.1.0", from the project's CMake file.
const char* Version();

}  // namespace kvpool

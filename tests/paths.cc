// The two folders are CMake's, compiled in here alone.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/paths.h"

#include <cstdlib>

namespace kvpool {

std::string SourcePath(const std::string& relative) {
  return std::string(KVPOOL_SOURCE_DIR) + "/" + relative;
}

std::string SharedDirectory() {
  const char* const named = std::getenv("KVPOOL_SHARED");
  return named != nullptr ? named : SourcePath("../shared");
}

std::string ProgramPath(const std::string& name) {
  return std::string(KVPOOL_PROGRAM_DIR) + "/" + name;
}

}  // namespace kvpool

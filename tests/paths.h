// Where tests find files of the source tree and programs of this build, from any folder that they
// are started in. Any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace kvpool {

// A path in the source tree that this test was built from, such as "worker/demo/text.txt".
std::string SourcePath(const std::string& relative);

// Where inputs that may not be committed are, if they are anywhere: KVPOOL_SHARED, or a folder
// beside the project's.
std::string SharedDirectory();

// A program of this build, such as "kvpool-agent".
std::string ProgramPath(const std::string& name);

}  // namespace kvpool

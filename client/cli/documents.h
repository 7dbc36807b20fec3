// What a command line can say of itself, made from its CLI11 model: shell completion and a manual
// page. So neither can name a flag that is not there. Values, one thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace CLI {
class App;
}  // namespace CLI

namespace kvpool {

// A script for bash: commands, flags, and the words that an argument may be. Names of tenants and
// agents are not completed: that would ask the manager at each key.
std::string BashCompletion(const CLI::App& app);

struct ManPageTexts {
  std::string summary;  // one line
  std::string version;
  std::string examples;    // lines of commands
  std::string exit_codes;  // text
};

// Section 1, in roff.
std::string ManPage(const CLI::App& app, const ManPageTexts& texts);

}  // namespace kvpool

// kvpool-manager: reads its settings and runs the manager. Exit codes: 0 stopped, 1 it could not
// run, 2 the settings are wrong.
//
// SPDX-License-Identifier: Apache-2.0
#include <iostream>
#include <string>
#include <vector>

#include "common/log.h"
#include "manager/manager.h"

int main(int argc, char** argv) {
  kvpool::ManagerConfig config;
  kvpool::Settings settings("kvpool-manager",
                            "Keeps tenants' budgets and leases the agents' memory to them.");
  kvpool::Declare(&config, &settings);
  const auto startup =
      settings.Load(std::vector<std::string>(argv + 1, argv + argc), kvpool::ProcessEnvironment());
  if (!startup.ok()) {
    std::cerr << "kvpool-manager: " << startup.status().message() << "\n";
    return 2;
  }
  // Also before --print-config: what it prints would start. Defaults pass, so --help prints.
  const absl::Status together = kvpool::CheckTogether(config);
  if (!together.ok()) {
    std::cerr << "kvpool-manager: " << together.message() << "\n";
    return 2;
  }
  if (!startup->output.empty()) {
    std::cout << startup->output;
    return 0;
  }
  kvpool::InitLogging(kvpool::LogOptionsFrom(config.log_level, config.log_format));
  const auto secrets = kvpool::ReadSecrets(config);
  if (!secrets.ok()) {
    std::cerr << "kvpool-manager: " << secrets.status().message() << "\n";
    return 2;
  }
  if (const absl::Status status = kvpool::RunManager(config, *secrets); !status.ok()) {
    std::cerr << "kvpool-manager: " << status.message() << "\n";
    return 1;
  }
  return 0;
}

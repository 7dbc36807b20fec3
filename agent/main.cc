// kvpool-agent: reads its settings and runs the agent.
//
// SPDX-License-Identifier: Apache-2.0
#include <iostream>
#include <string>
#include <vector>

#include "agent/agent.h"
#include "agent/agent_config.h"
#include "common/log.h"

int main(int argc, char** argv) {
  kvpool::AgentConfig config;
  kvpool::Settings settings("kvpool-agent",
                            "Owns the KV-cache memory of one device and divides it among tenants.");
  kvpool::Declare(&config, &settings);
  const auto startup =
      settings.Load(std::vector<std::string>(argv + 1, argv + argc), kvpool::ProcessEnvironment());
  if (!startup.ok()) {
    std::cerr << "kvpool-agent: " << startup.status().message() << "\n";
    return 2;
  }
  // Also before --print-config: what it prints would start. Defaults pass, so --help prints.
  absl::Status status = kvpool::CheckTogether(config);
  if (status.ok() && !startup->output.empty()) {
    std::cout << startup->output;
    return 0;
  }
  if (status.ok()) status = kvpool::ReadToken(&config);
  if (!status.ok()) {
    std::cerr << "kvpool-agent: " << status.message() << "\n";
    return 2;
  }
  kvpool::InitLogging(kvpool::LogOptionsFrom(config.log_level, config.log_format));
  const auto tls = kvpool::OpenTls(config);
  if (!tls.ok()) {
    std::cerr << "kvpool-agent: " << tls.status().message() << "\n";
    return 2;
  }
  if (status = kvpool::RunAgent(config, *tls); !status.ok()) {
    kvpool::Logger("agent").Error("cannot run", {{"error", status.ToString()}});
    return 1;
  }
  return 0;
}

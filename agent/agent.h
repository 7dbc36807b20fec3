// The agent: makes the device, the ledger and everything around them, connects them, and runs the
// RPC loop until it is told to stop. Nothing else is decided here.
//
// Constructed and run on the main thread, which becomes the RPC thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "absl/status/status.h"
#include "agent/agent_config.h"

namespace kvpool {

// Runs until SIGTERM or SIGINT. An error says what could not be started.
absl::Status RunAgent(const AgentConfig& config, const AgentTls& tls);

}  // namespace kvpool

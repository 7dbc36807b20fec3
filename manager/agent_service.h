// What agents talk to: the Manager and Link of proto/manager.capnp on top of Control. KJ thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "common/log.h"
#include "common/rpc_listener.h"
#include "common/secret.h"
#include "manager/control.h"

namespace kvpool {

class AgentService {
 public:
  struct Counters {
    uint64_t registrations = 0;  // accepted
    uint64_t refused = 0;        // registrations refused, for whatever reason
    uint64_t reports = 0;        // taken
    uint64_t bad_reports = 0;    // with impossible fields; their connections were cut
  };

  // `agent_token` is the secret that all agents share. Both must outlive every connection.
  AgentService(Control& control, kj::Timer& timer, const std::string& agent_token);

  // For RpcListener.
  BootstrapFactory Factory();
  const Counters& counters() const { return counters_; }

 private:
  // After a report that wanted something new: plans when a plan is due, and puts bounds on record
  // that the agent's orders wait for.
  kj::Promise<absl::Status> PlanAndRecord(const std::string& agent);

  class ManagerServer;
  class LinkServer;

  Control& control_;
  kj::Timer& timer_;
  const Sha256Hash agent_token_hash_;
  Logger log_;
  Counters counters_;
};

}  // namespace kvpool

// A manager of the simulation: the real Cluster, records and message conversions; what
// manager/control.cc and agent_service.cc do around them is imitated in the same order. It can
// crash at any moment and begin again from its disk, and an old one can go on beside a newer one.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <capnp/message.h>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "manager/cluster.h"
#include "manager/store.h"
#include "tests/sim/network.h"
#include "tests/sim/world.h"

namespace kvpool::sim {

using Message = std::shared_ptr<capnp::MallocMessageBuilder>;
inline Message NewMessage() { return std::make_shared<capnp::MallocMessageBuilder>(); }

// What survives managers.
struct Disk {
  uint64_t epoch = 0;
  std::map<std::string, std::string> records;
  TimePoint full_until;  // writes fail until then
};

// One manager's way to the disk; of several the newest may write.
class DiskStore final : public Store {
 public:
  DiskStore(const World& world, Disk& disk) : world_(world), disk_(disk) {}
  absl::StatusOr<Standing> Campaign() override;
  absl::StatusOr<Contents> Begin() override;
  absl::Status Write(const Changes& changes) override;
  absl::StatusOr<TimePoint> Renew() override;
  void Resign() override {}

 private:
  const World& world_;
  Disk& disk_;
  uint64_t epoch_ = 0;
};

struct Registered {
  RegisterOutcome outcome = RegisterOutcome::kOk;
  uint64_t link = 0;
  uint64_t epoch = 0;
};

class SimManager {
 public:
  SimManager(World& world, Network& network, Disk& disk, Process* process)
      : world_(world), network_(network), disk_(disk), process_(process) {}

  Process* process() const { return process_; }
  // nullptr while it is down.
  const Cluster* cluster() const { return cluster_.has_value() ? &*cluster_ : nullptr; }

  void Start();
  void Crash(Network::Loss loss);

  // What an operator asks for; `done` is dropped when the manager crashes before.
  using Done = std::function<void(const absl::Status&)>;
  void Apply(std::vector<TenantSpec> specs, Done done);
  void RemoveTenant(const std::string& name, Done done);
  void ForgetAgent(const std::string& name, Done done);

  // Calls of an agent; each answer travels back over the connection.
  void OnRegister(ConnectionId connection, const Message& params,
                  std::function<void(const Registered&)> answer);
  void OnExchange(ConnectionId connection, const Message& report,
                  std::function<void(const Message&)> answer);
  void OnClosed(ConnectionId connection);

 private:
  struct Link {
    std::string agent;
    uint64_t link = 0;
  };
  using Turn = std::function<void()>;

  void MoveRungs();
  void TakeTurn(Turn turn);
  void BeginTurn();
  void EndTurn();
  void Write(Store::Changes changes, Done then);
  void RecordBounds(ConnectionId connection, std::function<void(const Message&)> answer);
  // The agent's standing orders, if the connection is still its link.
  void SendOrders(ConnectionId connection, const std::function<void(const Message&)>& answer);
  void Answer(ConnectionId connection, const std::function<void(const Registered&)>& answer,
              const Registered& registered);

  World& world_;
  Network& network_;
  Disk& disk_;
  Process* const process_;
  std::optional<DiskStore> store_;
  std::optional<Cluster> cluster_;
  std::map<ConnectionId, Link> links_;
  std::deque<Turn> turns_;
  std::set<std::string> moving_;  // tenants whose rung is being changed
  enum class Busy : uint8_t { kNo, kYes } busy_ = Busy::kNo;
};

}  // namespace kvpool::sim

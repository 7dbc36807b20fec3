// A manager that says what the test says: serves the real protocol on a real TCP port, but leases
// are set by hand. Use it to test an agent alone; tests with the real manager use cluster.h.
//
// Test code; every method blocks until the RPC thread has done it.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "common/convert.h"
#include "common/policy_spec.h"
#include "common/rpc_listener.h"
#include "common/rpc_thread.h"
#include "common/secret.h"
#include "proto/manager.capnp.h"

namespace kvpool {

struct FakeTenant {
  std::string name;
  std::string token;
  uint32_t lease_slabs = 0;
  uint32_t limit_slabs = 1000;
  PolicySpec policy = DefaultPolicySpec();
  uint32_t grace_cold_millis = 2000;
  uint32_t grace_running_millis = 15'000;
  rpc::OverDeadline over_deadline = rpc::OverDeadline::HOLD;
  uint32_t floor_slabs = 0;
};

// What an agent reported last for a tenant.
struct FakeUse {
  uint32_t lease_slabs = 0;
  uint32_t held_slabs = 0;
  uint64_t used_bytes = 0;
  uint32_t charged_slabs = 0;
  uint32_t wanted_slabs = 0;
  uint32_t sessions = 0;
  uint32_t workers = 0;
  uint64_t refusals = 0;
  uint64_t compactions = 0;
  uint64_t recovery_count = 0;
  uint64_t over_millis = 0;
  bool past_deadline = false;
};

class FakeManager {
 public:
  static constexpr char kToken[] = "agent-token";

  FakeManager() {
    (void)thread_.Call([this](kj::AsyncIoContext& io) -> kj::Promise<void> {
      auto listener =
          RpcListener::Listen(*io.lowLevelProvider, {.address = HostPort{"127.0.0.1", 0}},
                              [this](RpcPeer, kj::Own<RpcConnection> connection) {
                                return kj::heap<ManagerServer>(*this, kj::mv(connection));
                              });
      listener_ = *std::move(listener);
      return kj::READY_NOW;
    });
  }
  ~FakeManager() noexcept {
    (void)thread_.Call([this](kj::AsyncIoContext&) -> kj::Promise<void> {
      listener_ = nullptr;
      held_ = nullptr;
      return kj::READY_NOW;
    });
  }

  std::string address() const { return ToString(listener_->address()); }

  // From the next report on.
  void Set(uint32_t id, const FakeTenant& tenant) {
    Run([&] {
      tenants_[id] = tenant;
      ++seq_;
    });
  }
  void SetEpoch(uint64_t epoch) {
    Run([&] { epoch_ = epoch; });
  }
  FakeUse Use(uint32_t id) {
    FakeUse use;
    Run([&] { use = uses_[id]; });
    return use;
  }
  std::vector<std::string> Reclaims(uint32_t id) {
    std::vector<std::string> reclaims;
    Run([&] { reclaims = reclaims_[id]; });
    return reclaims;
  }
  // Policies that its reclaims named.
  std::set<std::string> Policies(uint32_t id) {
    std::set<std::string> policies;
    Run([&] { policies = policies_[id]; });
    return policies;
  }
  // The next report is answered by Answer() only, and until then the agent sends no other.
  void HoldAnswer() {
    Run([&] { holding_ = true; });
  }
  bool holds_answer() {
    bool holds = false;
    Run([&] { holds = held_.get() != nullptr; });
    return holds;
  }
  // Requires that an answer is held.
  void Answer() {
    Run([&] {
      holding_ = false;
      held_->fulfill();
      held_ = nullptr;
    });
  }
  uint64_t reports() {
    uint64_t reports = 0;
    Run([&] { reports = reports_; });
    return reports;
  }

 private:
  template <typename F>
  void Run(F function) {
    (void)thread_.Call([&](kj::AsyncIoContext&) -> kj::Promise<void> {
      function();
      return kj::READY_NOW;
    });
  }

  class LinkServer final : public rpc::Link::Server {
   public:
    explicit LinkServer(FakeManager& manager) : manager_(manager) {}
    kj::Promise<void> exchange(ExchangeContext context) override {
      ++manager_.reports_;
      for (auto use : context.getParams().getReport().getTenants()) {
        manager_.uses_[use.getTenant()] = {.lease_slabs = use.getLeaseSlabs(),
                                           .held_slabs = use.getHeldSlabs(),
                                           .used_bytes = use.getUsedBytes(),
                                           .charged_slabs = use.getChargedSlabs(),
                                           .wanted_slabs = use.getWantedSlabs(),
                                           .sessions = use.getSessions(),
                                           .workers = use.getWorkers(),
                                           .refusals = use.getRefusals(),
                                           .compactions = use.getCompactions(),
                                           .recovery_count = use.getRecoveryCount(),
                                           .over_millis = use.getOverMillis(),
                                           .past_deadline = use.getPastDeadline()};
      }
      for (auto reclaim : context.getParams().getReport().getReclaims()) {
        manager_.reclaims_[reclaim.getTenant()].push_back(
            std::to_string(static_cast<int>(reclaim.getStep())) + ":" +
            std::to_string(static_cast<int>(reclaim.getReason())));
        manager_.policies_[reclaim.getTenant()].insert(reclaim.getPolicy().cStr());
      }
      auto orders = context.getResults().initOrders();
      orders.setEpoch(manager_.epoch_);
      orders.setComplete(true);
      orders.setReportMillis(20);
      auto list = orders.initTenants(manager_.tenants_.size());
      uint32_t i = 0;
      for (const auto& [id, tenant] : manager_.tenants_) {
        list[i].setTenant(id);
        list[i].setName(tenant.name);
        list[i].setSeq(manager_.seq_);
        list[i].setLeaseSlabs(tenant.lease_slabs);
        list[i].setLimitSlabs(tenant.limit_slabs);
        ToProto(tenant.policy, list[i].initPolicy());
        list[i].setGraceColdMillis(tenant.grace_cold_millis);
        list[i].setGraceRunningMillis(tenant.grace_running_millis);
        list[i].setOverDeadline(tenant.over_deadline);
        list[i].setFloorSlabs(tenant.floor_slabs);
        const Sha256Hash hash = Sha256(tenant.token);
        list[i].initTokenHashes(1).set(0, kj::arrayPtr(hash.data(), hash.size()));
        ++i;
      }
      if (!manager_.holding_) return kj::READY_NOW;
      auto held = kj::newPromiseAndFulfiller<void>();
      manager_.held_ = kj::mv(held.fulfiller);
      return kj::mv(held.promise);
    }

   private:
    FakeManager& manager_;
  };

  class ManagerServer final : public rpc::Manager::Server {
   public:
    ManagerServer(FakeManager& manager, kj::Own<RpcConnection> connection)
        : manager_(manager), connection_(kj::mv(connection)) {}
    kj::Promise<void> register_(RegisterContext context) override {
      auto result = context.getResults().initResult();
      if (std::string(context.getParams().getParams().getToken().cStr()) != kToken) {
        result.setRefused(rpc::RegisterRefusal::BAD_TOKEN);
        return kj::READY_NOW;
      }
      connection_->Authenticated();
      result.setLink(kj::heap<LinkServer>(manager_));
      return kj::READY_NOW;
    }

   private:
    FakeManager& manager_;
    kj::Own<RpcConnection> connection_;
  };

  std::unique_ptr<RpcListener> listener_;
  std::map<uint32_t, FakeTenant> tenants_;
  std::map<uint32_t, FakeUse> uses_;
  std::map<uint32_t, std::vector<std::string>> reclaims_;
  std::map<uint32_t, std::set<std::string>> policies_;
  uint64_t epoch_ = 1;
  uint64_t seq_ = 1;
  uint64_t reports_ = 0;
  bool holding_ = false;
  kj::Own<kj::PromiseFulfiller<void>> held_;
  RpcThread thread_;
};

}  // namespace kvpool

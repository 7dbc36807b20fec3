// An agent that speaks the real protocol to a real manager and has no memory: the test says what
// its tenants hold and want. It follows orders at once, and promises what it holds where that is
// more.
//
// Test code; every method blocks until the RPC thread has done it.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/convert.h"
#include "common/rpc_connect.h"
#include "common/rpc_thread.h"
#include "proto/limits.h"
#include "proto/manager.capnp.h"

namespace kvpool {

struct FakeAgentOptions {
  Address manager;
  std::string name = "a";
  std::string token = "agent-token";
  uint64_t incarnation = 1;
  uint64_t slab_bytes = 2 << 20;
  uint64_t slabs = 20;
  uint64_t highest_epoch = 0;
  uint32_t version = limits::kProtocolVersion;
  std::string device = "host";
};

// One tenant as the agent was told about it and as it reports it.
struct FakeTenantState {
  uint32_t id = 0;
  std::string policy;
  size_t tokens = 0;
  uint64_t epoch = 0, seq = 0;
  uint32_t lease = 0, limit = 0;
  uint32_t held = 0, charged = 0, wanted = 0;
  uint64_t used = 0;
};

class FakeAgent {
 public:
  explicit FakeAgent(FakeAgentOptions options) : options_(std::move(options)) {}
  ~FakeAgent() { Disconnect(); }

  // "ok", the reason of a refusal, or the error of the call.
  std::string Connect() {
    Disconnect();
    auto outcome = thread_.Call([this](kj::AsyncIoContext& io) {
      return RpcConnect(io, options_.manager).then([this](kj::Own<RpcClient> client) {
        client_ = kj::mv(client);
        return Register();
      });
    });
    return outcome.ok() ? *outcome : outcome.status().ToString();
  }

  void Disconnect() {
    (void)thread_.Call([this](kj::AsyncIoContext&) -> kj::Promise<void> {
      link_ = nullptr;
      client_ = nullptr;
      return kj::READY_NOW;
    });
  }

  // One report, and its orders applied. `edit` may change the report before it is sent.
  absl::Status Exchange(std::function<void(rpc::Report::Builder)> edit = nullptr) {
    return thread_.Call([this, edit](kj::AsyncIoContext&) -> kj::Promise<void> {
      auto& link = KJ_REQUIRE_NONNULL(link_);
      auto request = link.exchangeRequest();
      Fill(request.initReport());
      if (edit) edit(request.getReport());
      return request.send().then([this](auto&& response) { Apply(response.getOrders()); });
    });
  }

  // Between calls, the test may read and change these.
  FakeTenantState& tenant(const std::string& name) { return tenants_[name]; }
  bool Knows(const std::string& name) const { return tenants_.contains(name); }
  bool complete() const { return complete_; }
  uint32_t report_millis() const { return report_millis_; }
  size_t tenant_count() const { return tenants_.size(); }
  FakeAgentOptions& options() { return options_; }
  void AddReclaim(const std::string& tenant, uint64_t bytes) {
    reclaims_.emplace_back(tenant, bytes);
  }

 private:
  kj::Promise<std::string> Register() {
    auto request = client_->Bootstrap().castAs<rpc::Manager>().registerRequest();
    auto params = request.initParams();
    params.setProtocolVersion(options_.version);
    params.setToken(options_.token);
    params.setAgent(options_.name);
    params.setIncarnation(options_.incarnation);
    params.setPoolBytes(options_.slab_bytes * options_.slabs);
    params.setSlabBytes(options_.slab_bytes);
    params.setHighestEpoch(options_.highest_epoch);
    params.setDevice(options_.device);
    return request.send().then([this](auto&& response) -> std::string {
      const auto result = response.getResult();
      if (result.isRefused()) return kj::str(result.getRefused()).cStr();
      link_ = result.getLink();
      return "ok";
    });
  }

  void Fill(rpc::Report::Builder report) {
    report.setSeq(++seq_);
    auto lines = report.initTenants(static_cast<unsigned>(tenants_.size()));
    unsigned i = 0;
    uint64_t held = 0;
    for (const auto& [name, tenant] : tenants_) {
      auto line = lines[i++];
      line.setTenant(tenant.id);
      line.setLeaseEpoch(tenant.epoch);
      line.setLeaseSeq(tenant.seq);
      line.setLeaseSlabs(std::max(tenant.lease, tenant.held));
      line.setHeldSlabs(tenant.held);
      line.setChargedSlabs(tenant.charged);
      line.setWantedSlabs(tenant.wanted);
      line.setUsedBytes(tenant.used);
      line.setRecoveryMin(1);
      held += tenant.held;
    }
    report.setFreeSlabs(static_cast<uint32_t>(options_.slabs - held));
    auto reclaims = report.initReclaims(static_cast<unsigned>(reclaims_.size()));
    for (unsigned r = 0; r < reclaims.size(); ++r) {
      reclaims[r].setTenant(tenants_.at(reclaims_[r].first).id);
      reclaims[r].setBytes(reclaims_[r].second);
      reclaims[r].setBytesBefore(reclaims_[r].second * 4);
      reclaims[r].setStep(rpc::ReclaimStep::COMPACTION);
      reclaims[r].setReason(rpc::ReclaimReason::LEASE_SHRINK);
      reclaims[r].setPolicy("streaming(recent=252)");
      reclaims[r].setRecovery(0.5);
      reclaims[r].setRecoveryMin(0.25);
      reclaims[r].setCumulativeRecovery(0.125);
      reclaims[r].setCumulativeRecoveryMin(0.0625);
    }
    reclaims_.clear();
  }

  void Apply(rpc::Orders::Reader orders) {
    complete_ = orders.getComplete();
    report_millis_ = orders.getReportMillis();
    std::map<std::string, FakeTenantState> told;
    for (const auto order : orders.getTenants()) {
      const std::string name = order.getName().cStr();
      FakeTenantState tenant = tenants_[name];
      tenant.id = order.getTenant();
      tenant.policy = ToString(*FromProto(order.getPolicy()));
      tenant.tokens = order.getTokenHashes().size();
      tenant.limit = order.getLimitSlabs();
      if (std::pair(orders.getEpoch(), order.getSeq()) > std::pair(tenant.epoch, tenant.seq)) {
        tenant.epoch = orders.getEpoch();
        tenant.seq = order.getSeq();
        tenant.lease = order.getLeaseSlabs();
      }
      told[name] = tenant;
    }
    if (complete_) tenants_.clear();
    for (auto& [name, tenant] : told) tenants_[name] = tenant;
  }

  FakeAgentOptions options_;
  kj::Own<RpcClient> client_;
  kj::Maybe<rpc::Link::Client> link_;
  std::map<std::string, FakeTenantState> tenants_;
  std::vector<std::pair<std::string, uint64_t>> reclaims_;
  bool complete_ = false;
  uint32_t report_millis_ = 0;
  uint64_t seq_ = 0;
  RpcThread thread_;
};

}  // namespace kvpool

// The agent's end of the link to the manager that leads: registers, reports, applies orders, and
// when the link breaks dials again, one manager after the other. Without one the agent keeps its
// last leases.
//
// RPC thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kj/async-io.h>

#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "agent/manager_messages.h"
#include "agent/pool.h"
#include "agent/tenant_book.h"
#include "agent/workers.h"
#include "common/log.h"
#include "common/rpc_connect.h"
#include "proto/manager.capnp.h"

namespace kvpool {

struct ManagerLinkOptions {
  std::vector<HostPort> managers;  // at least one
  std::string token;               // the shared agent token
  std::string agent;               // this agent's name
  uint64_t incarnation = 0;        // random, of this pool
  std::string device;              // for people
  std::shared_ptr<TlsSource> tls;  // null: in the clear
  std::string tls_name;            // in the managers' certificates; empty: the host that is dialled
};

class ManagerLink final : private kj::TaskSet::ErrorHandler {
 public:
  struct Deps {
    kj::AsyncIoContext* io = nullptr;
    TenantBook* book = nullptr;
    PoolLedger* ledger = nullptr;
    Workers* workers = nullptr;
  };
  // `on_orders` runs after each applied message.
  ManagerLink(const Deps& deps, ManagerLinkOptions options, std::function<void()> on_orders);

  // Reports at once instead of at the next interval: demand or an acknowledgement changed.
  void Hurry();
  // Resolves after the next applied message, at once without a manager. For a token that was made a
  // moment ago and has not come yet.
  kj::Promise<void> Refresh();
  enum class State : uint8_t { kConnecting, kRegistered };
  State state() const { return state_; }
  // Messages of orders that were ignored: too many tenants or tokens, nonsense, or an old epoch.
  uint64_t bad_orders() const { return bad_orders_; }

 private:
  kj::Promise<void> Run();
  kj::Promise<void> Session();
  const HostPort& Manager() const;  // that is dialled now
  kj::Promise<kj::Own<RpcClient>> Dial();
  void Note(const kj::Exception& error);
  uint32_t Managers() const { return static_cast<uint32_t>(options_.managers.size()); }
  kj::Promise<void> Register(rpc::Manager::Client manager);
  kj::Promise<void> ExchangeLoop();
  kj::Promise<void> Exchange();
  kj::Promise<void> Pause();
  OutgoingReport MakeReport(TimePoint now);
  // Whether a promise is lower by now than this report said: somebody may wait for that.
  bool AcknowledgesMore(const OutgoingReport& report) const;
  void Apply(rpc::Orders::Reader message);
  void taskFailed(kj::Exception&& error) override;

  const Deps deps_;
  const ManagerLinkOptions options_;
  const std::function<void()> on_orders_;
  const Logger log_;
  kj::Maybe<RpcTls> tls_;
  State state_ = State::kConnecting;
  kj::Own<RpcClient> client_;
  kj::Maybe<rpc::Link::Client> link_;
  uint64_t seq_ = 0;
  uint64_t bad_orders_ = 0;
  uint32_t report_millis_;
  kj::Maybe<kj::Own<kj::PromiseFulfiller<void>>> hurry_;
  bool hurried_ = false;  // since the last report
  kj::Vector<kj::Own<kj::PromiseFulfiller<void>>> refreshing_;
  size_t dials_ = 0;
  uint32_t failures_ = 0;  // since it was registered
  std::minstd_rand jitter_;
  kj::TaskSet tasks_;
};

}  // namespace kvpool

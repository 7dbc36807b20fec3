// Registration, then one exchange after the other.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/agent_service.h"

#include <kj/debug.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "manager/agent_messages.h"
#include "proto/limits.h"
#include "proto/manager.capnp.h"

namespace kvpool {
namespace {

rpc::RegisterRefusal ToRefusal(RegisterOutcome outcome) {
  switch (outcome) {
    case RegisterOutcome::kNameTaken:
      return rpc::RegisterRefusal::NAME_TAKEN;
    case RegisterOutcome::kTooMany:
      return rpc::RegisterRefusal::TOO_MANY;
    case RegisterOutcome::kBadPool:
      return rpc::RegisterRefusal::BAD_POOL;
    case RegisterOutcome::kStaleEpoch:
      return rpc::RegisterRefusal::STALE_EPOCH;
    case RegisterOutcome::kOk:
      break;
  }
  return rpc::RegisterRefusal::UNKNOWN;
}

// For the operator, who reads the manager's log.
const char* Advice(rpc::RegisterRefusal refusal) {
  switch (refusal) {
    case rpc::RegisterRefusal::BAD_TOKEN:
      return "the agent has another agent token than this manager";
    case rpc::RegisterRefusal::BAD_VERSION:
      return "the agent speaks another protocol version; upgrade the older side";
    case rpc::RegisterRefusal::BAD_NAME:
      return "an agent's name is a-z, 0-9 and hyphens";
    case rpc::RegisterRefusal::BAD_CERTIFICATE:
      return "the agent's certificate is for another name; its common name must be the agent's"
             " setting name";
    case rpc::RegisterRefusal::NAME_TAKEN:
      return "another agent of this name is connected; give each agent its own name";
    case rpc::RegisterRefusal::TOO_MANY:
      return "the manager serves no more agents; forget those that are gone";
    case rpc::RegisterRefusal::BAD_POOL:
      return "the pool must be whole slabs, and all agents must have slabs of the same size";
    case rpc::RegisterRefusal::STALE_EPOCH:
      return "the agent has followed a newer manager; this one runs on an old database";
    default:
      return "the store failed";
  }
}

}  // namespace

// One registered agent. Dropped when the agent lets go of it or its connection ends.
class AgentService::LinkServer final : public rpc::Link::Server {
 public:
  LinkServer(AgentService& service, AgentInfo agent, const Registration& registered,
             kj::Own<RpcConnection> connection)
      : service_(service),
        agent_(std::move(agent)),
        epoch_(registered.epoch),
        link_(registered.link),
        connection_(kj::mv(connection)) {}

  ~LinkServer() noexcept(false) {
    Cluster& cluster = service_.control_.cluster();
    if (cluster.epoch() == epoch_) cluster.Disconnect(agent_.name, link_);
    service_.log_.Info("agent disconnected", {{"agent", agent_.name}});
  }

  kj::Promise<void> exchange(ExchangeContext context) override {
    RequireLive();
    Cluster& cluster = service_.control_.cluster();
    const TimePoint now = BootClock::now();
    auto report = CheckedReport(context.getParams().getReport(), agent_, now);
    if (!report.ok()) {
      ++service_.counters_.bad_reports;
      service_.log_.Warn("report refused, connection cut",
                         {{"agent", agent_.name}, {"why", std::string(report.status().message())}});
      connection_->Close();
      KJ_FAIL_REQUIRE("the report is impossible");
    }
    context.releaseParams();
    ++service_.counters_.reports;
    const AgentOrders orders = cluster.Exchange(agent_.name, *std::move(report), now);
    service_.control_.RemoveLeft();
    service_.control_.MoveRungs();
    const std::optional<TimePoint> plan_at = cluster.AwaitsPlan(agent_.name);
    if (!plan_at.has_value() && !cluster.AwaitsBounds(agent_.name)) {
      ToProto(orders, context.getResults().initOrders());
      return kj::READY_NOW;
    }
    const Duration wait = plan_at.has_value() ? std::max(*plan_at - now, Duration(0)) : Duration(0);
    return service_.timer_.afterDelay(wait.count() * kj::NANOSECONDS)
        .then([this] { return service_.PlanAndRecord(agent_.name); })
        .then([this, context, &cluster](absl::Status) mutable {
          RequireLive();
          ToProto(cluster.OrdersFor(agent_.name), context.getResults().initOrders());
        });
  }

 private:
  // Closes the connection and throws when this manager must not give the agent orders on this link.
  void RequireLive() {
    const Cluster& cluster = service_.control_.cluster();
    if (cluster.epoch() != epoch_ || !service_.control_.leadership().Leads()) {
      connection_->Close();
      KJ_FAIL_REQUIRE("this manager does not lead, or not any more");
    }
    if (!cluster.IsLive(agent_.name, link_)) {
      connection_->Close();
      KJ_FAIL_REQUIRE("a newer connection of this agent has taken over");
    }
  }

  AgentService& service_;
  const AgentInfo agent_;
  const uint64_t epoch_;  // links count anew in each
  const uint64_t link_;
  kj::Own<RpcConnection> connection_;
};

class AgentService::ManagerServer final : public rpc::Manager::Server {
 public:
  ManagerServer(AgentService& service, RpcPeer peer, kj::Own<RpcConnection> connection)
      : service_(service), peer_(kj::mv(peer)), connection_(kj::mv(connection)) {}

  kj::Promise<void> register_(RegisterContext context) override {
    const auto params = context.getParams().getParams();
    const auto token = params.getToken();
    const bool good_token =
        token.size() <= limits::kTokenBytes &&
        EqualInConstantTime(Sha256({token.begin(), token.size()}), service_.agent_token_hash_);
    if (!good_token) return Refuse(context, rpc::RegisterRefusal::BAD_TOKEN);
    connection_->Authenticated();
    if (params.getProtocolVersion() != limits::kProtocolVersion) {
      return Refuse(context, rpc::RegisterRefusal::BAD_VERSION);
    }
    const std::string name(params.getAgent().begin(), params.getAgent().size());
    if (!CheckName("agent", name).ok()) return Refuse(context, rpc::RegisterRefusal::BAD_NAME);
    if (peer_.certificate.get() != nullptr && !IsFor(*peer_.certificate, name)) {
      return Refuse(context, rpc::RegisterRefusal::BAD_CERTIFICATE);
    }
    auto agent = CheckedAgentInfo(params);
    if (!agent.ok()) return Refuse(context, rpc::RegisterRefusal::BAD_POOL);
    return service_.control_.Register(*agent, params.getHighestEpoch())
        .then([this, context, agent = *agent](
                  absl::StatusOr<Registration> registered) mutable -> kj::Promise<void> {
          if (!registered.ok()) {
            return Refuse(context, absl::IsCancelled(registered.status())
                                       ? rpc::RegisterRefusal::NOT_LEADER
                                       : rpc::RegisterRefusal::UNKNOWN);
          }
          if (registered->outcome != RegisterOutcome::kOk) {
            return Refuse(context, ToRefusal(registered->outcome));
          }
          ++service_.counters_.registrations;
          service_.log_.Info("agent registered", {{"agent", agent.name},
                                                  {"peer", peer_.text},
                                                  {"slabs", agent.slabs()},
                                                  {"slab_bytes", agent.slab_bytes.value()}});
          context.getResults().getResult().setLink(kj::heap<LinkServer>(
              service_, std::move(agent), *registered, kj::addRef(*connection_)));
          return kj::READY_NOW;
        });
  }

 private:
  kj::Promise<void> Refuse(RegisterContext& context, rpc::RegisterRefusal refusal) {
    ++service_.counters_.refused;
    // Agents look for the leader among all managers, again and again.
    if (refusal != rpc::RegisterRefusal::NOT_LEADER) {
      service_.log_.Warn("agent refused", {{"peer", peer_.text}, {"why", Advice(refusal)}});
    }
    context.getResults().getResult().setRefused(refusal);
    return kj::READY_NOW;
  }

  AgentService& service_;
  RpcPeer peer_;
  kj::Own<RpcConnection> connection_;
};

AgentService::AgentService(Control& control, kj::Timer& timer, const std::string& agent_token)
    : control_(control), timer_(timer), agent_token_hash_(Sha256(agent_token)), log_("agents") {}

kj::Promise<absl::Status> AgentService::PlanAndRecord(const std::string& agent) {
  control_.cluster().PlanIfDue(BootClock::now());
  return control_.RecordBounds(agent);
}

BootstrapFactory AgentService::Factory() {
  return [this](RpcPeer peer, kj::Own<RpcConnection> connection) -> capnp::Capability::Client {
    return rpc::Manager::Client(kj::heap<ManagerServer>(*this, kj::mv(peer), kj::mv(connection)));
  };
}

}  // namespace kvpool

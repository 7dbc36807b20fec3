// The client library against an agent that breaks the protocol's limits: the call is refused,
// nothing is mapped, and the worker goes on.
//
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <memory>
#include <string>

#include "agent/shared_regions.h"
#include "client/kvpool.h"
#include "common/rpc_listener.h"
#include "common/rpc_thread.h"
#include "proto/agent.capnp.h"
#include "proto/limits.h"
#include "tests/integration/process.h"

namespace kvpool {
namespace {

constexpr uint32_t kSlots = 2 * limits::kSlabsPerCall;
constexpr Bytes kSlab = 256_KiB;

class MemoryServer final : public rpc::Memory::Server {
 public:
  explicit MemoryServer(int fd) : fd_(fd) {}
  kj::Maybe<int> getFd() override { return fd_; }

 private:
  const int fd_;  // of the agent, which lives longer
};

// Accepts every token and attachment, grants and revokes what it is told to. Every method blocks.
class HostileAgent {
 public:
  explicit HostileAgent(const std::string& socket)
      : slab_(kj::AutoCloseFd(memfd_create("slab", MFD_CLOEXEC))) {
    EXPECT_EQ(ftruncate(slab_, kSlab.value()), 0);
    (void)thread_.Call([this, &socket](kj::AsyncIoContext& io) -> kj::Promise<void> {
      listener_ = *RpcListener::Listen(*io.lowLevelProvider, {.address = UnixPath{socket}},
                                       [this](RpcPeer, kj::Own<RpcConnection> connection) {
                                         connection->Authenticated();
                                         return kj::heap<AgentServer>(*this);
                                       });
      return kj::READY_NOW;
    });
  }
  ~HostileAgent() {
    (void)thread_.Call([this](kj::AsyncIoContext&) -> kj::Promise<void> {
      events_ = nullptr;
      listener_ = nullptr;
      return kj::READY_NOW;
    });
  }

  // Slots 0 .. count - 1 in one call; OK when the worker acknowledged.
  absl::Status Grant(uint32_t count) {
    return thread_.Call([this, count](kj::AsyncIoContext&) {
      auto request = KJ_ASSERT_NONNULL(events_).slabsGrantedRequest();
      auto slabs = request.initSlabs(count);
      for (uint32_t i = 0; i < count; ++i) {
        slabs[i].setIndex(i);
        slabs[i].setMemory(kj::heap<MemoryServer>(slab_.get()));
      }
      return request.send().ignoreResult();
    });
  }
  absl::Status Revoke(uint32_t count) {
    return thread_.Call([this, count](kj::AsyncIoContext&) {
      auto request = KJ_ASSERT_NONNULL(events_).slabsRevokedRequest();
      auto slabs = request.initSlabs(count);
      for (uint32_t i = 0; i < count; ++i) slabs.set(i, i);
      return request.send().ignoreResult();
    });
  }

 private:
  class AttachmentServer final : public rpc::Attachment::Server {
    kj::Promise<void> ping(PingContext) override { return kj::READY_NOW; }
    kj::Promise<void> detach(DetachContext) override { return kj::READY_NOW; }
  };

  class TenantServer final : public rpc::Tenant::Server {
   public:
    explicit TenantServer(HostileAgent& agent) : agent_(agent) {}
    kj::Promise<void> attach(AttachContext context) override {
      const auto params = context.getParams().getParams();
      const auto group = params.getGeometry().getGroups()[0];
      agent_.regions_ = *SharedRegions::Make(
          {.sessions = params.getMaxSessions(),
           .windows = params.getMaxRunning(),
           .session_tokens = params.getMaxSessionTokens(),
           .planes = group.getLayers() * group.getKvHeads(),
           .query_floats = group.getKvOfLayer().size() * group.getQueryHeads() * group.getKeyDim(),
           .query_lses = group.getKvOfLayer().size() * group.getQueryHeads()});
      agent_.events_ = params.getEvents();
      auto attached = context.getResults().initResult().initAttached();
      attached.setAttachment(kj::heap<AttachmentServer>());
      attached.setControl(kj::heap<MemoryServer>(agent_.regions_->control_fd()));
      attached.setTables(kj::heap<MemoryServer>(agent_.regions_->tables_fd()));
      attached.setDoorbell(kj::heap<MemoryServer>(agent_.regions_->doorbell_fd()));
      attached.setSlabBytes(kSlab.value());
      attached.setSlabSlots(kSlots);
      return kj::READY_NOW;
    }

   private:
    HostileAgent& agent_;
  };

  class AgentServer final : public rpc::Agent::Server {
   public:
    explicit AgentServer(HostileAgent& agent) : agent_(agent) {}
    kj::Promise<void> authenticate(AuthenticateContext context) override {
      context.getResults().initResult().setTenant(kj::heap<TenantServer>(agent_));
      return kj::READY_NOW;
    }

   private:
    HostileAgent& agent_;
  };

  kj::AutoCloseFd slab_;
  // RPC thread.
  std::unique_ptr<RpcListener> listener_;
  std::unique_ptr<SharedRegions> regions_;
  kj::Maybe<rpc::WorkerEvents::Client> events_;
  RpcThread thread_;
};

// Whether this process may touch the first byte of a slot: the kernel says so instead of a signal.
bool IsMapped(Tenant& tenant, uint32_t slot) {
  // Ours is ordered after the thread that maps only by a call of ours, not by what the agent saw.
  EXPECT_TRUE(tenant.Ping().ok()) << "the connection goes on";
  const kj::AutoCloseFd file(memfd_create("copy", MFD_CLOEXEC));
  return write(file, tenant.base() + slot * kSlab.value(), 1) == 1;
}

TEST(HostileAgentTest, SlabsAboveTheMaximumOfACallAreRefusedAsAWhole) {
  TempDir dir;
  HostileAgent agent(dir / "agent.sock");
  auto connection = Connection::Open({.socket = dir / "agent.sock"});
  ASSERT_TRUE(connection.ok()) << connection.status();
  auto tenant = (*connection)
                    ->Attach("token", {.geometry = {.layers = 1,
                                                    .query_heads = 1,
                                                    .kv_heads = 1,
                                                    .key_dim = 32,
                                                    .value_dim = 32,
                                                    .dtype = Dtype::kBf16,
                                                    .kv_of_layer = {0}},
                                       .max_sessions = 2,
                                       .max_running = 2,
                                       .max_session_tokens = 64,
                                       .chunk_tokens = 16});
  ASSERT_TRUE(tenant.ok()) << tenant.status();

  EXPECT_FALSE(agent.Grant(limits::kSlabsPerCall + 1).ok());
  EXPECT_FALSE(IsMapped(**tenant, 0)) << "a call is taken as a whole or not at all";
  EXPECT_TRUE(agent.Grant(limits::kSlabsPerCall).ok());
  EXPECT_TRUE(IsMapped(**tenant, limits::kSlabsPerCall - 1));

  EXPECT_FALSE(agent.Revoke(limits::kSlabsPerCall + 1).ok());
  EXPECT_TRUE(IsMapped(**tenant, 0));
  EXPECT_TRUE(agent.Revoke(limits::kSlabsPerCall).ok());
  EXPECT_FALSE(IsMapped(**tenant, 0));
}

}  // namespace
}  // namespace kvpool

// A KvCache whose memory an agent owns: an adaptor of the client library. The policy, budgets and
// compaction are the agent's; this file only translates.
//
// Engine's thread, as KvCache.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "client/kvpool.h"
#include "worker/kv_cache.h"

namespace kvpool {

class PoolKvSession;

class PoolKv final : public KvCache {
 public:
  explicit PoolKv(std::unique_ptr<Tenant> tenant) : tenant_(std::move(tenant)) {}

  OpenResult Open(const OpenRequest& request) override;
  // Parks sessions that did not step since the last safe point, so that the agent may compact them
  // by itself; hand-overs happen in Prepare, where the length of the step is known.
  void SafePoint(std::span<KvSession* const> sessions) override;

  Tenant& tenant() { return *tenant_; }

 private:
  std::unique_ptr<Tenant> tenant_;
};

class PoolKvSession final : public KvSession {
 public:
  PoolKvSession(Tenant* tenant, std::unique_ptr<Session> session)
      : tenant_(tenant), session_(std::move(session)) {}

  const Layout& layout() const override { return tenant_->layout(); }
  std::byte* base() const override { return tenant_->base(); }
  Readiness Prepare(uint32_t tokens) override;
  SessionView View() const override { return session_->View(prepared_); }
  float* QuerySlot(uint32_t index) override;
  void Commit(uint32_t tokens) override;
  std::string error() const override { return std::string(error_.message()); }

 private:
  friend class PoolKv;
  enum class Rest : uint8_t { kStepped, kRested, kParked };

  size_t query_floats() const;

  Tenant* const tenant_;
  const std::unique_ptr<Session> session_;
  uint32_t prepared_ = 0;
  std::vector<float> queries_;  // [prepared][model_layers][query_heads][key_dim], when wanted
  bool wants_queries_ = false;
  Rest rest_ = Rest::kStepped;
  absl::Status error_;
};

}  // namespace kvpool

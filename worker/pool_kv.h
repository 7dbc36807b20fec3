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
  // `token_flags`: of each token of the vocabulary (token_classes.h); empty: none are known.
  // `model`: names the weights and all else that keys and values depend on; empty: sessions share
  // no prompts.
  explicit PoolKv(std::unique_ptr<Tenant> tenant, std::vector<uint8_t> token_flags = {},
                  std::string model = {})
      : tenant_(std::move(tenant)),
        token_flags_(std::move(token_flags)),
        model_(std::move(model)) {}

  OpenResult Open(const OpenRequest& request) override;
  // Also parks the sessions that rested since the last call, so that the agent may compact or move
  // them by itself.
  void Prepare(std::span<KvStep> steps) override;

 private:
  friend class PoolKvSession;

  std::unique_ptr<Tenant> tenant_;
  const std::vector<uint8_t> token_flags_;  // [vocabulary], or empty
  const std::string model_;
  std::vector<Step> steps_;
  std::set<PoolKvSession*> sessions_;
};

class PoolKvSession final : public KvSession {
 public:
  PoolKvSession(PoolKv* cache, std::unique_ptr<Session> session);
  ~PoolKvSession() override;

  const Layout& layout() const override { return cache_->tenant_->layout(); }
  std::byte* base() const override { return cache_->tenant_->base(); }
  uint32_t shared_tokens() const override { return session_->shared_tokens(); }
  SessionView View() const override { return session_->View(prepared_); }
  QuerySlot SlotOf(uint32_t index) override;
  bool WantsProfile() const override { return session_->WantsProfile(); }
  void Profile(const AttendedChunk& chunk) override { session_->Profile(chunk); }
  void Commit() override;

 private:
  friend class PoolKv;
  enum class Rest : uint8_t { kStepping, kResting, kParked };

  size_t query_heads() const;  // of all model layers

  PoolKv* const cache_;
  const std::unique_ptr<Session> session_;
  uint32_t prepared_ = 0;
  // When wanted, [prepared][model_layers][query_heads] ..
  std::vector<float> queries_;  // .. [key_dim]
  std::vector<float> lses_;
  bool wants_queries_ = false;
  std::vector<uint8_t> flags_;  // of the next step's tokens
  Rest rest_ = Rest::kResting;
  absl::Status error_;  // of the last Commit: told at the next Prepare
};

}  // namespace kvpool

// A worker without manners: speaks the agent's protocol by hand, so that it can ask for what the
// client library never would. Each call gives the outcome as one word: "ok", the refusal's reason
// as the schema spells it ("badToken"), or "broken" when the connection failed.
//
// Test code. Every method blocks; capabilities live on the RPC thread that is passed in.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <capnp/schema.h>
#include <fcntl.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "client/mapping.h"
#include "common/rpc_connect.h"
#include "common/rpc_thread.h"
#include "kernels/geometry.h"
#include "proto/agent.capnp.h"
#include "proto/limits.h"
#include "proto/shared_memory.h"

namespace kvpool {

class RawWorker {
 public:
  RawWorker(RpcThread& thread, const std::string& socket) : thread_(thread) {
    (void)thread_.Call([this, &socket](kj::AsyncIoContext& io) {
      return RpcConnect(io, UnixPath{socket}).then([this](kj::Own<RpcClient> client) {
        caps_ = std::make_unique<Caps>(Caps{.client = kj::mv(client)});
      });
    });
  }
  ~RawWorker() {
    (void)thread_.Call([this](kj::AsyncIoContext&) -> kj::Promise<void> {
      caps_.reset();
      return kj::READY_NOW;
    });
  }
  RawWorker(const RawWorker&) = delete;
  RawWorker& operator=(const RawWorker&) = delete;

  std::string Authenticate(const std::string& token, uint32_t version = limits::kProtocolVersion,
                           const std::string& name = "raw") {
    return Call([=, this]() -> kj::Promise<Word> {
      auto request = caps_->client->Bootstrap().castAs<rpc::Agent>().authenticateRequest();
      request.getParams().setProtocolVersion(version);
      request.getParams().setToken(kj::StringPtr(token.data(), token.size()));
      request.getParams().setWorker(name);
      return request.send().then([this](auto&& response) -> Word {
        auto result = response.getResult();
        if (result.isRefused()) return NameOf(result.getRefused());
        caps_->tenant = result.getTenant();
        return "ok";
      });
    });
  }

  // What a modest worker would ask for; `edit` changes it.
  using Edit = std::function<void(rpc::AttachParams::Builder)>;
  std::string Attach(const Geometry& geometry, const Edit& edit = nullptr) {
    sizes_ = {.sessions = 4,
              .windows = 4,
              .session_tokens = 256,
              .planes = geometry.planes(),
              .query_floats = geometry.model_layers() * geometry.query_heads * geometry.key_dim,
              .query_lses = geometry.model_layers() * geometry.query_heads};
    return Call([&, this]() -> kj::Promise<Word> {
      auto request = KJ_ASSERT_NONNULL(caps_->tenant).attachRequest();
      auto params = request.getParams();
      Describe(geometry, params.initGeometry().initGroups(1)[0]);
      params.setMaxSessions(sizes_.sessions);
      params.setMaxRunning(sizes_.windows);
      params.setMaxSessionTokens(sizes_.session_tokens);
      params.setChunkTokens(64);
      params.setEvents(kj::heap<Events>(largest_grant_));
      if (edit) edit(params);
      return request.send().then([this](auto&& response) -> kj::Promise<Word> {
        auto result = response.getResult();
        if (result.isRefused()) return NameOf(result.getRefused());
        caps_->attachment = result.getAttached().getAttachment();
        auto control = result.getAttached().getControl();
        auto fd = control.getFd();
        return fd.then([this, control = kj::mv(control)](kj::Maybe<int> fd) -> Word {
          const Bytes bytes(static_cast<int64_t>(shm::ControlBytes(sizes_)));
          auto mapped = Mapping::Map(KJ_ASSERT_NONNULL(fd), bytes, Mapping::Access::kReadWrite);
          if (mapped.ok()) control_ = *std::move(mapped);
          return "ok";
        });
      });
    });
  }
  static void Describe(const Geometry& geometry, rpc::LayerGroup::Builder group) {
    group.setLayers(geometry.layers);
    group.setQueryHeads(geometry.query_heads);
    group.setKvHeads(geometry.kv_heads);
    group.setKeyDim(geometry.key_dim);
    group.setValueDim(geometry.value_dim);
    group.setDtype(static_cast<rpc::Dtype>(geometry.dtype));
    auto map = group.initKvOfLayer(geometry.model_layers());
    for (uint32_t i = 0; i < map.size(); ++i) map.set(i, geometry.kv_of_layer[i]);
  }

  // `prompt`: the tokens that are told.
  std::string Open(uint32_t prompt_tokens, uint32_t max_tokens,
                   const std::vector<uint32_t>& prompt = {}, const std::string& model = "") {
    return Call([=, this]() -> kj::Promise<Word> {
      auto request = attachment().openSessionRequest();
      request.getParams().setPromptTokens(prompt_tokens);
      request.getParams().setMaxTokens(max_tokens);
      request.getParams().setModel(model);
      auto tokens = request.getParams().initPrompt(prompt.size());
      for (size_t i = 0; i < prompt.size(); ++i) tokens.set(i, prompt[i]);
      return request.send().then([this](auto&& response) -> Word {
        auto result = response.getResult();
        if (result.isRefused()) return NameOf(result.getRefused());
        caps_->sessions.push_back(result.getOpened().getSession());
        const auto wish = result.getOpened().getProfile();
        wish_ = {.sample_every = wish.getSampleEvery(),
                 .recovery = wish.getRecovery(),
                 .local = wish.getLocal(),
                 .frequent = wish.getFrequent(),
                 .group = wish.getGroup()};
        return "ok";
      });
    });
  }
  std::string Fork(uint32_t slot, uint32_t max_tokens) {
    return Call([=, this]() -> kj::Promise<Word> {
      auto request = attachment().forkSessionRequest();
      request.setSlot(slot);
      request.setMaxTokens(max_tokens);
      return request.send().then([this](auto&& response) -> Word {
        auto result = response.getResult();
        if (result.isRefused()) return NameOf(result.getRefused());
        caps_->sessions.push_back(result.getOpened().getSession());
        return "ok";
      });
    });
  }
  // How the prompt of the session that was opened last is to be profiled.
  struct Wish {
    uint32_t sample_every = 0;
    double recovery = 0, local = 0, frequent = 0;
    rpc::ProfileGroup group = rpc::ProfileGroup::MIN;
  };
  const Wish& wish() const { return wish_; }
  // The oldest of those that are open.
  void CloseOne() {
    (void)Call([this]() -> kj::Promise<Word> {
      if (!caps_->sessions.empty()) caps_->sessions.erase(caps_->sessions.begin());
      return Word("ok");
    });
  }

  std::string Reserve(uint32_t pages) {
    return Call([=, this]() -> kj::Promise<Word> {
      auto request = attachment().reserveRequest();
      request.setPages(pages);
      return request.send().then(
          [](auto&& response) -> Word { return NameOf(response.getResult()); });
    });
  }

  struct Item {
    uint32_t slot, window;
    uint64_t first;
    uint32_t count;
  };
  // The outcome of the last item.
  std::string Drain(const std::vector<Item>& items) {
    return Call([&, this]() -> kj::Promise<Word> {
      auto request = attachment().drainRequest();
      auto list = request.initItems(items.size());
      for (uint32_t i = 0; i < list.size(); ++i) {
        list[i].setSlot(items[i].slot);
        list[i].setWindow(items[i].window);
        list[i].setFirst(items[i].first);
        list[i].setCount(items[i].count);
      }
      return request.send().then([](auto&& response) -> Word {
        auto results = response.getResults();
        return NameOf(results[results.size() - 1]);
      });
    });
  }
  std::string HandOver(const std::vector<uint32_t>& slots) {
    return Call([&, this]() -> kj::Promise<Word> {
      auto request = attachment().handOverRequest();
      auto list = request.initSlots(slots.size());
      for (uint32_t i = 0; i < list.size(); ++i) list.set(i, slots[i]);
      return request.send().then([](auto&& response) -> Word {
        auto results = response.getResults();
        return NameOf(results[results.size() - 1].getOutcome());
      });
    });
  }
  std::string Ping() {
    return Call([this]() -> kj::Promise<Word> {
      return attachment().pingRequest().send().then([](auto&&) -> Word { return "ok"; });
    });
  }

  const shm::ShmSizes& sizes() const { return sizes_; }
  std::byte* control() const { return control_.data(); }
  shm::PageRing& grants() const {
    return *reinterpret_cast<shm::PageRing*>(control() + shm::GrantRingOffset());
  }
  // Most slabs that one call of the agent has granted.
  uint32_t largest_grant() const { return *largest_grant_; }

 private:
  using Word = const char*;  // static
  struct Caps {
    kj::Own<RpcClient> client;
    kj::Maybe<rpc::Tenant::Client> tenant = nullptr;
    kj::Maybe<rpc::Attachment::Client> attachment = nullptr;
    std::vector<rpc::Session::Client> sessions;
  };

  // Says yes to everything and does nothing.
  class Events final : public rpc::WorkerEvents::Server {
   public:
    explicit Events(std::shared_ptr<std::atomic<uint32_t>> largest_grant)
        : largest_grant_(std::move(largest_grant)) {}

   private:
    kj::Promise<void> slabsGranted(SlabsGrantedContext context) override {
      *largest_grant_ = std::max<uint32_t>(*largest_grant_, context.getParams().getSlabs().size());
      return kj::READY_NOW;
    }
    kj::Promise<void> slabsRevoked(SlabsRevokedContext) override { return kj::READY_NOW; }
    kj::Promise<void> pressure(PressureContext) override { return kj::READY_NOW; }

    const std::shared_ptr<std::atomic<uint32_t>> largest_grant_;
  };

  static Word NameOf(rpc::Refusal::Reader refusal) {
    const auto reasons = capnp::Schema::from<rpc::RefusalReason>().getEnumerants();
    return reasons[static_cast<uint16_t>(refusal.getReason())].getProto().getName().cStr();
  }
  static Word NameOf(rpc::Outcome::Reader outcome) {
    return outcome.isRefused() ? NameOf(outcome.getRefused()) : "ok";
  }

  rpc::Attachment::Client& attachment() { return KJ_ASSERT_NONNULL(caps_->attachment); }

  template <typename F>
  std::string Call(F function) {
    auto word = thread_.Call([&](kj::AsyncIoContext& io) {
      return WithDeadline(function(), io.provider->getTimer(), std::chrono::seconds(20));
    });
    return word.ok() ? std::string(*word) : "broken";
  }

  RpcThread& thread_;
  const std::shared_ptr<std::atomic<uint32_t>> largest_grant_ =
      std::make_shared<std::atomic<uint32_t>>(0);
  std::unique_ptr<Caps> caps_;  // RPC thread
  shm::ShmSizes sizes_;
  Wish wish_;
  Mapping control_;
};

}  // namespace kvpool

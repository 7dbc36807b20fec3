// Translates between the wire and Workers. See service.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/service.h"

#include <capnp/schema.h>
#include <kj/debug.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "agent/agent_metrics.h"
#include "agent/memory_server.h"
#include "common/secret.h"
#include "proto/agent.capnp.h"
#include "proto/limits.h"
#include "proto/shared_memory.h"

namespace kvpool {
namespace {

static_assert(static_cast<uint32_t>(shm::Failure::kBadPageList) ==
              static_cast<uint32_t>(rpc::RefusalReason::BAD_PAGE_LIST));
static_assert(static_cast<uint32_t>(shm::Failure::kPreempted) ==
              static_cast<uint32_t>(rpc::RefusalReason::PREEMPTED));

rpc::RefusalReason ReasonOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kResourceExhausted:
      return rpc::RefusalReason::NO_SPACE;
    case absl::StatusCode::kOutOfRange:
      return rpc::RefusalReason::TOO_LARGE;
    case absl::StatusCode::kInvalidArgument:
      return rpc::RefusalReason::BAD_ARGUMENT;
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kNotFound:
      return rpc::RefusalReason::BAD_STATE;
    case absl::StatusCode::kDataLoss:
      return rpc::RefusalReason::BAD_PAGE_LIST;
    case absl::StatusCode::kUnauthenticated:
      return rpc::RefusalReason::BAD_TOKEN;
    case absl::StatusCode::kCancelled:
      return rpc::RefusalReason::PREEMPTED;
    default:
      return rpc::RefusalReason::UNKNOWN;
  }
}

// The wire's name of a reason, for the metric.
std::string NameOf(rpc::RefusalReason reason) {
  const auto enumerants = capnp::Schema::from<rpc::RefusalReason>().getEnumerants();
  return enumerants[static_cast<uint16_t>(reason)].getProto().getName().cStr();
}

std::string ToString(capnp::Text::Reader text) { return {text.begin(), text.size()}; }

absl::StatusOr<SessionRequest> FromCapnp(rpc::OpenParams::Reader params) {
  SessionRequest request{.prompt_tokens = params.getPromptTokens(),
                         .max_tokens = params.getMaxTokens()};
  // Each look at a list counts against what may be read of a message: so one.
  const auto prompt = params.getPrompt();
  const uint32_t most = std::min(request.prompt_tokens, limits::kPrefixTokens);
  if (prompt.size() > most) {
    return absl::InvalidArgumentError(absl::StrCat("prompt lists ", prompt.size(),
                                                   " tokens, allowed are the first ", most,
                                                   " of promptTokens"));
  }
  request.model = ToString(params.getModel());
  if (request.model.size() > limits::kPrefixModelBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("model is longer than ", limits::kPrefixModelBytes, " bytes"));
  }
  for (const uint32_t token : prompt) request.prompt.push_back(token);
  return request;
}

absl::StatusOr<Layout> FromCapnp(rpc::Geometry::Reader reader, Bytes slab_bytes) {
  if (reader.getGroups().size() != 1) {
    return absl::InvalidArgumentError("a geometry has exactly one layer group for now");
  }
  const rpc::LayerGroup::Reader group = reader.getGroups()[0];
  if (group.getWindow() != 0) {
    return absl::InvalidArgumentError("sliding-window layer groups are not supported yet");
  }
  Geometry geometry{.layers = group.getLayers(),
                    .query_heads = group.getQueryHeads(),
                    .kv_heads = group.getKvHeads(),
                    .key_dim = group.getKeyDim(),
                    .value_dim = group.getValueDim()};
  switch (group.getDtype()) {
    case rpc::Dtype::F32:
      geometry.dtype = Dtype::kF32;
      break;
    case rpc::Dtype::BF16:
      geometry.dtype = Dtype::kBf16;
      break;
    case rpc::Dtype::F16:
      geometry.dtype = Dtype::kF16;
      break;
    default:
      return absl::InvalidArgumentError("the geometry's dtype is not known here");
  }
  for (uint16_t layer : group.getKvOfLayer()) geometry.kv_of_layer.push_back(layer);
  for (uint16_t layer : group.getSelfMasked()) geometry.self_masked.push_back(layer);
  const GeometryLimits most{
      .layers = limits::kLayers, .heads = limits::kHeads, .head_dim = limits::kHeadDim};
  if (absl::Status status = CheckGeometry(geometry, most); !status.ok()) return status;
  return Layout::Make(geometry, slab_bytes);
}

void ToCapnp(const ProfileRule& rule, rpc::ProfileWish::Builder wish) {
  wish.setSampleEvery(rule.sample_every);
  wish.setRecovery(rule.recovery);
  wish.setLocal(rule.local);
  wish.setFrequent(rule.frequent);
  wish.setGroup(rule.group == ProfileRule::Group::kMin ? rpc::ProfileGroup::MIN
                                                       : rpc::ProfileGroup::MEAN);
}

class SessionServer final : public rpc::Session::Server {
 public:
  SessionServer(Workers& workers, WorkerId worker, uint32_t slot, SessionId id)
      : workers_(workers), worker_(worker), slot_(slot), id_(id) {}
  ~SessionServer() noexcept(false) { workers_.Close(worker_, slot_, id_); }

 private:
  Workers& workers_;
  const WorkerId worker_;
  const uint32_t slot_;
  const SessionId id_;
};

// What the servers of one connection share: who the peer is, and whether it is still connected.
struct Peer final : public kj::Refcounted {
  Peer(const ServiceDeps& deps, RpcPeer peer, kj::Own<RpcConnection> connection)
      : deps(deps), info(kj::mv(peer)), connection(kj::mv(connection)) {
    this->connection->OnDisconnect([over = hung_up] { *over = true; });
  }

  // Resolves when the peer cannot touch memory that it lets go of now. A peer that dropped a
  // capability and stays connected has finished with it; of one that hung up, only the end of its
  // process is proof. When a connection ends, its capabilities go first: so look a moment later.
  kj::Promise<void> Gone() {
    return kj::evalLater([self = kj::addRef(*this)]() mutable -> kj::Promise<void> {
      if (!*self->hung_up) return kj::READY_NOW;
      auto observer = kj::heap<kj::UnixEventPort::FdObserver>(
          *self->deps.port, self->info.pidfd.get(), kj::UnixEventPort::FdObserver::OBSERVE_READ);
      auto promise = observer->whenBecomesReadable();
      // The observer goes before the descriptor that it observes.
      return promise.attach(kj::mv(observer)).attach(kj::mv(self));
    });
  }

  void Refuse(rpc::Refusal::Builder builder, rpc::RefusalReason reason, const std::string& text) {
    deps.metrics->CountRefusedCall(NameOf(reason));
    builder.setReason(reason);
    builder.setText(text);
  }
  void Refuse(rpc::Refusal::Builder builder, const absl::Status& status) {
    Refuse(builder, ReasonOf(status), std::string(status.message()));
  }
  void SetOutcome(rpc::Outcome::Builder builder, const absl::Status& status) {
    if (status.ok()) return builder.setOk();
    Refuse(builder.initRefused(), status);
  }

  const ServiceDeps deps;
  RpcPeer info;
  kj::Own<RpcConnection> connection;
  std::shared_ptr<bool> hung_up = std::make_shared<bool>(false);
};

class AttachmentServer final : public rpc::Attachment::Server {
 public:
  AttachmentServer(kj::Own<Peer> peer, WorkerId worker) : peer_(kj::mv(peer)), worker_(worker) {}
  ~AttachmentServer() noexcept(false) { workers().Detach(worker_, peer_->Gone()); }

  kj::Promise<void> reserve(ReserveContext context) override {
    return workers()
        .Reserve(worker_, context.getParams().getPages())
        .then([peer = kj::addRef(*peer_), context](absl::Status status) mutable {
          peer->SetOutcome(context.getResults().initResult(), status);
        });
  }

  kj::Promise<void> openSession(OpenSessionContext context) override {
    const auto params = context.getParams().getParams();
    auto result = context.getResults().initResult();
    if (RefuseForSlots(result)) return kj::READY_NOW;
    absl::StatusOr<SessionRequest> request = FromCapnp(params);
    if (!request.ok()) {
      peer_->Refuse(result.initRefused(), request.status());
      return kj::READY_NOW;
    }
    return workers()
        .Open(worker_, *std::move(request))
        .then([this, context](absl::StatusOr<AgentSession*> session) mutable {
          Answer(session, context.getResults().initResult());
        });
  }

  kj::Promise<void> forkSession(ForkSessionContext context) override {
    const auto params = context.getParams();
    if (RefuseForSlots(context.getResults().initResult())) return kj::READY_NOW;
    return workers()
        .Fork(worker_, params.getSlot(), params.getMaxTokens())
        .then([this, context](absl::StatusOr<AgentSession*> session) mutable {
          Answer(session, context.getResults().initResult());
        });
  }

  kj::Promise<void> drain(DrainContext context) override {
    const auto items = context.getParams().getItems();
    if (items.size() > limits::kBatchItems) return TooMany();
    kj::Vector<kj::Promise<absl::Status>> drains;
    for (auto item : items) {
      drains.add(workers().Drain(worker_, {.slot = item.getSlot(),
                                           .window = item.getWindow(),
                                           .first = item.getFirst(),
                                           .count = item.getCount()}));
    }
    return kj::joinPromises(drains.releaseAsArray())
        .then([peer = kj::addRef(*peer_), context](kj::Array<absl::Status> statuses) mutable {
          auto results = context.getResults().initResults(statuses.size());
          for (size_t i = 0; i < statuses.size(); ++i) peer->SetOutcome(results[i], statuses[i]);
        });
  }

  kj::Promise<void> handOver(HandOverContext context) override {
    const auto list = context.getParams().getSlots();
    if (list.size() > limits::kBatchItems) return TooMany();
    std::vector<uint32_t> slots;
    for (uint32_t slot : list) slots.push_back(slot);
    return workers()
        .HandOver(worker_, std::move(slots))
        .then([peer = kj::addRef(*peer_),
               context](std::vector<CompactionOutcome> outcomes) mutable {
          auto results = context.getResults().initResults(outcomes.size());
          for (size_t i = 0; i < outcomes.size(); ++i) {
            const CompactionOutcome& outcome = outcomes[i];
            peer->SetOutcome(results[i].initOutcome(), outcome.status);
            const bool compacted = outcome.effect == CompactionOutcome::Effect::kCompacted;
            results[i].setCompacted(compacted);
            results[i].setMoved(compacted || outcome.effect == CompactionOutcome::Effect::kMoved);
            results[i].setRecovery(outcome.recovery.mean);
          }
        });
  }

  kj::Promise<void> detach(DetachContext) override {
    workers().Detach(worker_, kj::READY_NOW);
    return kj::READY_NOW;
  }

  kj::Promise<void> ping(PingContext) override { return kj::READY_NOW; }

  kj::Promise<void> statistics(StatisticsContext context) override {
    if (const Worker* worker = workers().Find(worker_)) {
      const TenantId tenant = worker->attachment->setup().tenant;
      const TenantUsage usage = peer_->deps.ledger->Usage(tenant);
      context.getResults().setLeaseSlabs(usage.lease_slabs);
      context.getResults().setHeldSlabs(usage.held_slabs);
      context.getResults().setUsedBytes(workers().UsedBytes(tenant).value());
    }
    return kj::READY_NOW;
  }

 private:
  Workers& workers() { return *peer_->deps.workers; }

  bool RefuseForSlots(rpc::OpenResult::Builder result) {
    const Worker* worker = workers().Find(worker_);
    if (worker == nullptr ||
        worker->attachment->sessions().size() < worker->attachment->setup().sizes.sessions) {
      return false;
    }
    peer_->Refuse(result.initRefused(), rpc::RefusalReason::TOO_MANY,
                  "all session slots of this attachment are taken: attach with more maxSessions");
    return true;
  }

  void Answer(const absl::StatusOr<AgentSession*>& session, rpc::OpenResult::Builder result) {
    if (session.ok()) return Fill(**session, result.initOpened());
    peer_->Refuse(result.initRefused(), session.status());
  }

  void Fill(const AgentSession& opened, rpc::Opened::Builder builder) {
    builder.setSession(kj::heap<SessionServer>(workers(), worker_, opened.slot, opened.id));
    builder.setSlot(opened.slot);
    builder.setQueryNeed(static_cast<rpc::QueryNeed>(opened.needs.queries));
    builder.setSampleEvery(opened.needs.sample_every);
    builder.setPromptRows(opened.needs.prompt_rows);
    builder.setTokenFlags(opened.needs.planes.flags);
    if (opened.needs.profile.has_value()) ToCapnp(*opened.needs.profile, builder.initProfile());
    builder.setSharedTokens(opened.committed);
  }

  // A message that breaks the table of limits: its sender is broken, its connection ends.
  kj::Promise<void> TooMany() {
    peer_->deps.metrics->CountRefusedCall(NameOf(rpc::RefusalReason::TOO_MANY));
    peer_->connection->Close();
    return KJ_EXCEPTION(FAILED, "too many items in a batch");
  }

  kj::Own<Peer> peer_;
  const WorkerId worker_;
};

class TenantServer final : public rpc::Tenant::Server {
 public:
  TenantServer(kj::Own<Peer> peer, TenantId tenant, std::string worker)
      : peer_(kj::mv(peer)), tenant_(tenant), worker_(std::move(worker)) {}

  kj::Promise<void> attach(AttachContext context) override {
    const auto params = context.getParams().getParams();
    auto result = context.getResults().initResult();
    if (attached_) {
      peer_->Refuse(result.initRefused(), rpc::RefusalReason::BAD_STATE, "a Tenant attaches once");
      return kj::READY_NOW;
    }
    if (peer_->deps.workers->all().size() >= limits::kWorkers) {
      peer_->Refuse(result.initRefused(), rpc::RefusalReason::TOO_MANY,
                    "this agent serves at most " + std::to_string(limits::kWorkers) + " workers");
      return kj::READY_NOW;
    }
    absl::StatusOr<Layout> layout =
        FromCapnp(params.getGeometry(), peer_->deps.ledger->config().slab_bytes);
    if (!layout.ok()) {
      peer_->Refuse(result.initRefused(), rpc::RefusalReason::BAD_GEOMETRY,
                    std::string(layout.status().message()));
      return kj::READY_NOW;
    }
    const absl::StatusOr<WorkerId> id = peer_->deps.workers->Attach(
        {.tenant = tenant_,
         .worker = worker_,
         .layout = *std::move(layout),
         .max_sessions = params.getMaxSessions(),
         .max_running = params.getMaxRunning(),
         .max_session_tokens = params.getMaxSessionTokens(),
         .chunk_tokens = params.getChunkTokens(),
         .queries =
             params.getQueries() == rpc::QueryOffer::ALL ? QueryOffer::kAll : QueryOffer::kNone},
        params.getEvents());
    if (!id.ok()) {
      peer_->Refuse(result.initRefused(), id.status());
      return kj::READY_NOW;
    }
    attached_ = true;
    Fill(result.initAttached(), *id);
    return kj::READY_NOW;
  }

 private:
  void Fill(rpc::Attached::Builder attached, WorkerId id) {
    SharedRegions& regions = peer_->deps.workers->Find(id)->attachment->regions();
    attached.setAttachment(kj::heap<AttachmentServer>(kj::addRef(*peer_), id));
    attached.setControl(kj::heap<MemoryServer>(regions.control_fd()));
    attached.setTables(kj::heap<MemoryServer>(regions.tables_fd()));
    attached.setDoorbell(kj::heap<MemoryServer>(regions.doorbell_fd()));
    attached.setSlabBytes(peer_->deps.ledger->config().slab_bytes.value());
    attached.setSlabSlots(peer_->deps.ledger->config().slabs);
    const TenantState* tenant = peer_->deps.book->Find(tenant_);
    attached.setPolicy(tenant == nullptr ? "" : ToString(tenant->spec));
    attached.setWorkerId(id.value());
  }

  kj::Own<Peer> peer_;
  const TenantId tenant_;
  const std::string worker_;
  bool attached_ = false;
};

class AgentServer final : public rpc::Agent::Server {
 public:
  explicit AgentServer(kj::Own<Peer> peer) : peer_(kj::mv(peer)) {}

  kj::Promise<void> authenticate(AuthenticateContext context) override {
    const auto params = context.getParams().getParams();
    auto result = context.getResults().initResult();
    if (params.getProtocolVersion() != limits::kProtocolVersion) {
      peer_->Refuse(
          result.initRefused(), rpc::RefusalReason::BAD_VERSION,
          "this agent speaks protocol version " + std::to_string(limits::kProtocolVersion));
      return kj::READY_NOW;
    }
    if (params.getWorker().size() > limits::kNameBytes) {
      peer_->Refuse(
          result.initRefused(), rpc::RefusalReason::BAD_ARGUMENT,
          "the worker's name is longer than " + std::to_string(limits::kNameBytes) + " bytes");
      return kj::READY_NOW;
    }
    const std::string worker = ToString(params.getWorker());
    const bool too_long = params.getToken().size() > limits::kTokenBytes;
    const Sha256Hash hash = too_long ? Sha256Hash() : Sha256(ToString(params.getToken()));
    if (Accept(hash, worker, result)) return kj::READY_NOW;
    // The token may have been made a moment ago.
    return peer_->deps.refresh().then([this, context, hash, worker]() mutable {
      auto result = context.getResults().initResult();
      if (Accept(hash, worker, result)) return;
      peer_->Refuse(
          result.initRefused(), rpc::RefusalReason::BAD_TOKEN,
          "no tenant of this agent has this token (make one: kvpoolctl token create TENANT)");
    });
  }

 private:
  bool Accept(const Sha256Hash& hash, const std::string& worker,
              rpc::AuthenticateResult::Builder result) {
    const TenantState* tenant = peer_->deps.book->FindByToken(hash);
    if (tenant == nullptr) return false;
    peer_->connection->Authenticated();
    result.setTenant(kj::heap<TenantServer>(kj::addRef(*peer_), tenant->id, worker));
    return true;
  }

  kj::Own<Peer> peer_;
};

}  // namespace

capnp::Capability::Client MakeAgentService(const ServiceDeps& deps, RpcPeer peer,
                                           kj::Own<RpcConnection> connection) {
  return kj::heap<AgentServer>(kj::refcounted<Peer>(deps, kj::mv(peer), kj::mv(connection)));
}

}  // namespace kvpool

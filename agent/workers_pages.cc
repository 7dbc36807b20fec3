// Pages and slabs on their way to and from workers. See workers.h.
//
// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "agent/agent_metrics.h"
#include "agent/memory_server.h"
#include "agent/workers.h"
#include "common/kj_asio.h"
#include "common/rpc_connect.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

// How long a worker may take to map or unmap slabs, or to return pages. One that takes longer keeps
// what it has; nothing is given twice.
constexpr std::chrono::seconds kWorkerAnswers(5);

// How long the RPC thread stays with one magazine.
constexpr std::chrono::milliseconds kTurn(1);

}  // namespace

void Workers::WatchDoorbell(WorkerId id) {
  Worker& worker = workers_.at(id);
  SharedRegions& regions = worker.attachment->regions();
  worker.doorbell = kj::heap<kj::UnixEventPort::FdObserver>(
      *deps_.port, regions.doorbell_fd(), kj::UnixEventPort::FdObserver::OBSERVE_READ);
  worker.watching = AwaitDoorbell(id).eagerlyEvaluate([this, id](kj::Exception&& error) {
    log_.Error("a doorbell is not watched any more",
               {{"worker", id.value()}, {"error", error.getDescription().cStr()}});
  });
}

kj::Promise<void> Workers::AwaitDoorbell(WorkerId id) {
  Worker& worker = workers_.at(id);
  SharedRegions& regions = worker.attachment->regions();
  auto rung = worker.doorbell->whenBecomesReadable();
  regions.header().agent_sleeping.store(1, std::memory_order_seq_cst);
  // A worker that ran low before it could see the flag did not ring.
  TopUp(id);
  return rung.then([this, id, fd = regions.doorbell_fd()] {
    uint64_t count = 0;
    // Nothing to read only means that an earlier read has taken this ring, too.
    (void)!read(fd, &count, sizeof(count));
    ServeMagazine(id);
    return AwaitDoorbell(id);
  });
}

void Workers::ServeMagazine(WorkerId id) {
  const TimePoint end = BootClock::now() + kTurn;
  const Attachment& attachment = *workers_.at(id).attachment;
  uint64_t before = 0;
  do {
    before = attachment.traffic();
    TopUp(id);
  } while (attachment.traffic() - before >= attachment.target() / 2 && BootClock::now() < end);
}

void Workers::TopUp(WorkerId id) {
  const Turn turn(deps_.metrics);
  Worker* worker = Find(id);
  if (worker == nullptr) return;
  Attachment& attachment = *worker->attachment;
  const AttachmentSetup& setup = attachment.setup();
  const TenantState* tenant = deps_.book->Find(setup.tenant);
  const uint64_t leased =
      tenant == nullptr ? 0 : uint64_t{tenant->lease_slabs} * setup.layout.pages_per_slab();
  attachment.SetTarget(
      static_cast<uint32_t>(std::min<uint64_t>(leased / limits::kMagazineShare, shm::kRingSlots)));
  attachment.Collect();
  // A tenant above its lease keeps no spare pages: they may be the room that a slab needs to leave.
  const TenantUsage usage = deps_.ledger->Usage(setup.tenant);
  if (usage.held_slabs <= usage.lease_slabs) attachment.Fill(attachment.target());
}

bool Workers::PastDeadline(TenantId tenant) const {
  const TenantState* state = deps_.book->Find(tenant);
  return state != nullptr && state->PastDeadline(BootClock::now());
}

uint32_t Workers::Fill(Worker& worker, uint32_t pages) {
  Attachment& attachment = *worker.attachment;
  return PastDeadline(attachment.setup().tenant) ? attachment.waiting() : attachment.Fill(pages);
}

kj::Promise<absl::Status> Workers::Reserve(WorkerId id, uint32_t pages) {
  Worker* worker = Find(id);
  if (worker == nullptr) return absl::Status(absl::FailedPreconditionError("detached"));
  if (pages == 0) return absl::Status(absl::InvalidArgumentError("reserve of no pages"));
  if (pages > shm::kRingSlots) {
    return absl::Status(absl::OutOfRangeError(
        absl::StrCat("reserve of ", pages, " pages, a magazine holds at most ", shm::kRingSlots)));
  }
  worker->attachment->Collect();
  if (Fill(*worker, std::max(pages, worker->attachment->target())) >= pages) {
    return absl::Status();
  }
  return Grow(id, pages).then([this, id, pages](bool grown) -> kj::Promise<absl::Status> {
    Worker* worker = Find(id);
    if (worker == nullptr) return absl::Status(absl::FailedPreconditionError("detached"));
    if (Fill(*worker, pages) >= pages) return absl::Status();
    if (grown || DropParked(id, pages)) return Reserve(id, pages);
    return Refuse(id, pages);
  });
}

// The last thing to try is what other workers of the tenant hold unused.
kj::Promise<absl::Status> Workers::Refuse(WorkerId id, uint32_t pages) {
  const TenantId tenant = Find(id)->attachment->setup().tenant;
  return ReturnMagazines(tenant).then([this, id, pages]() -> absl::Status {
    Worker* worker = Find(id);
    if (worker == nullptr) return absl::FailedPreconditionError("detached");
    const uint32_t got = Fill(*worker, pages);
    if (got >= pages) return absl::OkStatus();
    const AttachmentSetup& setup = worker->attachment->setup();
    const TenantState* tenant = deps_.book->Find(setup.tenant);
    const TimePoint now = BootClock::now();
    const bool past_deadline = tenant->PastDeadline(now);
    const uint64_t bytes = (pages - got) * setup.layout.page_bytes().value();
    deps_.book->Record(
        {.tenant = setup.tenant,
         .time = now,
         .step = ReclaimStep::kRefusal,
         .reason = past_deadline ? ReclaimReason::kLeaseShrink : ReclaimReason::kNoPages,
         .policy = ToString(tenant->spec),
         .sessions = 0,
         .bytes = bytes});
    Changed(setup.tenant);
    if (past_deadline) {
      return absl::ResourceExhaustedError(PastDeadlineText(*tenant, now, "page"));
    }
    if (on_lacking_) on_lacking_(id, CeilDiv(pages - got, setup.layout.pages_per_slab()));
    return absl::ResourceExhaustedError(absl::StrCat("tenant ", tenant->name, " has no ", pages,
                                                     " pages left within its lease of ",
                                                     tenant->lease_slabs, " slabs at this agent"));
  });
}

std::vector<SlabIndex> Workers::MakeSlabs(WorkerId id, const TenantState& tenant, size_t count) {
  std::vector<SlabIndex> made;
  while (made.size() < count && deps_.ledger->Usage(tenant.id).held_slabs < UsableSlabs(tenant)) {
    const absl::StatusOr<SlabIndex> slab = deps_.ledger->AssignSlab(id);
    if (!slab.ok()) break;
    if (absl::Status created = deps_.device->CreateSlab(*slab); !created.ok()) {
      log_.Error("cannot make a slab", {{"slab", slab->value()}, {"error", created.ToString()}});
      (void)deps_.ledger->BeginEvacuate(*slab);
      (void)deps_.ledger->BeginDrain(*slab);
      (void)deps_.ledger->FreeSlab(*slab);
      break;
    }
    made.push_back(*slab);
  }
  return made;
}

kj::Promise<bool> Workers::Grow(WorkerId id, uint32_t pages) {
  Worker* worker = Find(id);
  const AttachmentSetup& setup = worker->attachment->setup();
  const TenantState* tenant = deps_.book->Find(setup.tenant);
  if (worker->growing || tenant == nullptr || PastDeadline(tenant->id)) return false;
  std::vector<SlabIndex> slabs = deps_.ledger->SlabsToOffer(id, limits::kSlabsPerCall);
  const size_t wanted =
      std::min<size_t>(CeilDiv(pages, setup.layout.pages_per_slab()), limits::kSlabsPerCall);
  if (slabs.size() < wanted) {
    const std::vector<SlabIndex> made = MakeSlabs(id, *tenant, wanted - slabs.size());
    slabs.insert(slabs.end(), made.begin(), made.end());
  }
  if (slabs.empty()) return false;
  worker->growing = true;
  populating_.insert(slabs.begin(), slabs.end());
  return Offload(*deps_.pool,
                 [device = deps_.device, slabs] {
                   for (SlabIndex slab : slabs) {
                     // Without it the first touch pays, or fails where nothing else can be done.
                     if (!device->Populate(slab).ok()) return false;
                   }
                   return true;
                 })
      .then([this, id, slabs](bool populated) -> kj::Promise<bool> {
        if (!populated) log_.Error("not enough memory for new slabs");
        for (SlabIndex slab : slabs) populating_.erase(populating_.find(slab));
        return Offer(id, slabs);
      });
}

kj::Promise<bool> Workers::Offer(WorkerId id, std::vector<SlabIndex> slabs) {
  Worker* worker = Find(id);
  if (worker == nullptr) {
    workers_.at(id).growing = false;
    RemoveIfDone(id);
    return false;
  }
  // One that is on its way out by now is not sent.
  std::erase_if(slabs, [&](SlabIndex slab) { return !deps_.ledger->MarkOffered(id, slab).ok(); });
  if (slabs.empty()) {
    worker->growing = false;
    return false;
  }
  auto request = worker->events.slabsGrantedRequest();
  auto list = request.initSlabs(slabs.size());
  for (size_t i = 0; i < slabs.size(); ++i) {
    list[i].setIndex(slabs[i].value());
    list[i].setMemory(kj::heap<MemoryServer>(deps_.device->SlabFd(slabs[i])));
  }
  return WithDeadline(request.send().ignoreResult(), *deps_.timer, kWorkerAnswers)
      .then(
          [this, id, slabs = std::move(slabs)] {
            const auto found = workers_.find(id);
            if (found == workers_.end()) return false;
            found->second.growing = false;
            for (SlabIndex slab : slabs) (void)deps_.ledger->MarkMapped(id, slab);
            RemoveIfDone(id);
            return true;
          },
          [this, id](kj::Exception&&) {
            const auto found = workers_.find(id);
            if (found != workers_.end()) found->second.growing = false;
            log_.Warn("a worker did not map its slabs", {{"worker", id.value()}});
            RemoveIfDone(id);
            return false;
          });
}

kj::Promise<void> Workers::ReturnMagazines(TenantId tenant) {
  kj::Vector<kj::Promise<void>> answers;
  for (auto& [id, worker] : workers_) {
    if (worker.attachment->setup().tenant != tenant || worker.detached) continue;
    auto request = worker.events.pressureRequest();
    request.setReturnPages(true);
    answers.add(WithDeadline(request.send().ignoreResult(), *deps_.timer, kWorkerAnswers)
                    .then(
                        [this, id = id] {
                          if (Worker* answered = Find(id)) answered->attachment->Collect();
                        },
                        [this, id = id](kj::Exception&&) {
                          log_.Warn("a worker did not return its pages", {{"worker", id.value()}});
                        }));
  }
  return kj::joinPromises(answers.releaseAsArray());
}

kj::Promise<void> Workers::Revoke(SlabIndex slab) {
  kj::Vector<kj::Promise<void>> answers;
  for (WorkerId id : deps_.ledger->WorkersOf(slab)) {
    Worker* worker = Find(id);
    if (worker == nullptr) continue;  // it unmaps by dying: RemoveWorker takes its mappings
    auto request = worker->events.slabsRevokedRequest();
    request.initSlabs(1).set(0, slab.value());
    answers.add(WithDeadline(request.send().ignoreResult(), *deps_.timer, kWorkerAnswers)
                    .then([this, id, slab] { (void)deps_.ledger->MarkUnmapped(id, slab); },
                          [this, id](kj::Exception&&) {
                            log_.Warn("a worker did not unmap a slab", {{"worker", id.value()}});
                          }));
  }
  return kj::joinPromises(answers.releaseAsArray());
}

}  // namespace kvpool

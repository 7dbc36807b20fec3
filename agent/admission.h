// What a session is charged at most, and how many slabs that makes: a session is admitted only when
// its policy's peak fits beside the peaks of all that are open, so the oldest can always finish.
//
// Charged are pages (the cache) and overhead, by a formula in the geometry: planes, tables, a query
// window and, where the policy wants them, the tokens' flags and the prompt's profile. What sealing
// saves is not counted on: it does not happen to a worker that hands nothing over. Pure, any
// thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "common/policy_spec.h"
#include "common/units.h"
#include "kernels/layout.h"
#include "kernels/policy/policy.h"
#include "kernels/sealing.h"

namespace kvpool {

struct Charge {
  uint64_t pages = 0;
  Bytes overhead;

  Charge& operator+=(const Charge& other);
  Charge& operator-=(const Charge& other);
  bool operator==(const Charge&) const = default;
};

// The most that a session can take: every row native, and the pages that heads' last sealed blocks
// may leave partly empty.
Charge PeakCharge(const Layout& layout, const Policy& policy, const SealRule& seal,
                  const SessionPlan& plan);
// The same of a session that keeps and pushes what `needs` says: more than its policy asks for.
Charge PeakCharge(const Layout& layout, const Policy& policy, const PolicyNeeds& needs,
                  const SealRule& seal, const SessionPlan& plan);
// The same of one whose every row stays to its end, although it may have been compacted before.
Charge WholeCharge(const Layout& layout, const PolicyNeeds& needs, const SealRule& seal,
                   const SessionPlan& plan);

// Tokens at the beginning of a prompt that a session of this policy may share with others, in whole
// pages: at most all but the last one, whose query is always asked. Queries that the policy cannot
// do without are not shared, nor what lies past the policy's first compaction; and nothing is where
// it must see the whole prompt (a profile, all its rows) or wants flags of tokens.
uint32_t ShareableTokens(const Layout& layout, const Policy& policy, const SessionPlan& plan);

// Whether a session of this policy loses or rewrites rows without pressure.
bool Compacts(const Layout& layout, const Policy& policy, const SealRule& seal,
              const SessionPlan& plan);

// Pages of the agent's reserve that a sealing goes through: room for one block of every head.
// Requires that blocks of this format fit a page.
uint32_t ReservePages(const Layout& layout, SealedFormat format);
// The same in slabs.
uint32_t ReserveSlabs(const Layout& layout, SealedFormat format);

// FailedPrecondition when a session of this layout cannot be sealed to `format`, because the device
// has no kernels for it or because it would take no less room; names the formats that can be had.
absl::Status CheckFormat(const Layout& layout, std::span<const SealedFormat> device,
                         SealedFormat format);
// FailedPrecondition when a reserve of `slabs` is too small to seal such a session through; says
// how large it must be. Requires that CheckFormat found the format good.
absl::Status CheckReserve(const Layout& layout, SealedFormat format, uint32_t slabs);

// Which queries a worker can push.
enum class QueryOffer : uint8_t { kAll, kNone };

// InvalidArgument when the policy cannot do without queries and the worker has none to offer; the
// message names the policies that can.
absl::Status CheckQueries(const PolicySpec& spec, const Policy& policy, QueryOffer offer);
// InvalidArgument when the recovery of a worker's sessions has to be measured, and it pushes no
// queries to measure it by.
absl::Status CheckMeasurable(double min_recovery, QueryOffer offer);

// Slabs that a charge needs: whole slabs of pages, and whole slabs' worth of overhead.
uint32_t SlabsFor(const Layout& layout, const Charge& charge);
// The overhead part of SlabsFor: slabs of the lease that must stay unused for it.
uint32_t OverheadSlabs(const Layout& layout, const Charge& charge);

// What the workers of one tenant are charged in all. Slabs are whole for each layout, because no
// slab serves two. Each layout must outlive this.
class TenantCharges {
 public:
  void Add(const Layout& layout, const Charge& charge);
  // Room for one of the sessions to be charged so much more: of all that is said here, the most.
  void AddHeadroom(const Layout& layout, const Charge& growth);

  // That admission counts against the lease.
  uint32_t Slabs() const;
  // That the tenant could use: one at least for each layout, also of a worker without a session.
  uint32_t WantedSlabs() const;
  // Of a lease, for pages: the rest must stay unused for the overhead.
  uint32_t UsableSlabs(uint32_t lease_slabs) const;

 private:
  struct OfLayout {
    const Layout* layout;
    Charge charge;
    std::vector<Charge> growths;
  };
  OfLayout& Of(const Layout& layout);
  uint32_t HeadroomSlabs() const;

  std::vector<OfLayout> layouts_;
};

}  // namespace kvpool

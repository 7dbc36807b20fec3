// The formulas of admission.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/admission.h"

#include "common/ids.h"
#include "kernels/planes.h"
#include "proto/limits.h"

namespace kvpool {

Charge& Charge::operator+=(const Charge& other) {
  pages += other.pages;
  overhead += other.overhead;
  return *this;
}

Charge& Charge::operator-=(const Charge& other) {
  pages -= other.pages;
  overhead -= other.overhead;
  return *this;
}

Charge PeakCharge(const Layout& layout, const Policy& policy, const SessionPlan& plan) {
  const Geometry& geometry = layout.geometry();
  const uint32_t tokens = policy.PeakTokens(plan);
  const bool compacts = policy.NextCompactAt({.geometry = &geometry, .plan = plan}).has_value();
  Charge charge;
  // A compacted segment's last block and the first fresh page may each be partly empty.
  charge.pages = CeilDiv(tokens, kPageTokens) + (compacts ? 1 : 0);
  const PolicyNeeds needs = policy.Needs();
  uint64_t overhead = PlaneBytes(geometry, needs.planes, tokens);
  if (compacts) {
    // Two epochs of tables: a length, the blocks' ids and the rows' positions, 4 bytes each.
    overhead += 2 * 4 * uint64_t{geometry.planes()} * (1 + CeilDiv(tokens, kPageTokens) + tokens);
  }
  if (needs.queries != QueryNeed::kNone) {
    overhead +=
        uint64_t{limits::kWindowQueries} * 4 *
        (1 + uint64_t{geometry.model_layers()} * geometry.query_heads * (geometry.key_dim + 1));
  }
  charge.overhead = Bytes(static_cast<int64_t>(overhead));
  return charge;
}

uint32_t OverheadSlabs(const Layout& layout, const Charge& charge) {
  return static_cast<uint32_t>(CeilDiv(charge.overhead.value(), layout.slab_bytes().value()));
}

uint32_t SlabsFor(const Layout& layout, const Charge& charge) {
  return static_cast<uint32_t>(CeilDiv<uint64_t>(charge.pages, layout.pages_per_slab())) +
         OverheadSlabs(layout, charge);
}

}  // namespace kvpool

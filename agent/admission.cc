// The formulas of admission.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/admission.h"

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/ids.h"
#include "kernels/places.h"
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

bool Compacts(const Layout& layout, const Policy& policy, const SealRule& seal,
              const SessionPlan& plan) {
  return seal.format != SealedFormat::kNone ||
         policy.NextCompactAt({.geometry = &layout.geometry(), .plan = plan}).has_value();
}

namespace {

enum class Rows : uint8_t { kStay, kGo };

Charge ChargeFor(const Layout& layout, uint32_t tokens, Rows rows, const PolicyNeeds& needs,
                 const SealRule& seal, const SessionPlan& plan) {
  const Geometry& geometry = layout.geometry();
  Charge charge;
  // A compacted segment's last block and the first fresh page may each be partly empty.
  charge.pages = CeilDiv(tokens, kPageTokens) + (rows == Rows::kGo ? 1 : 0);
  if (seal.format != SealedFormat::kNone) charge.pages += ReservePages(layout, seal.format);
  uint64_t overhead = PlaneBytes(geometry, needs.planes, tokens);
  if (rows == Rows::kGo) {
    // Two epochs of tables: a length, the blocks' ids and the rows' positions, 4 bytes each.
    overhead += 2 * 4 * uint64_t{geometry.planes()} * (1 + CeilDiv(tokens, kPageTokens) + tokens);
  }
  if (needs.queries != QueryNeed::kNone) {
    overhead +=
        uint64_t{limits::kWindowQueries} * 4 *
        (1 + uint64_t{geometry.model_layers()} * geometry.query_heads * (geometry.key_dim + 1));
  }
  if (needs.planes.flags) overhead += plan.max_tokens;
  if (needs.profile.has_value()) {
    // On its way from the worker: a class a head, a frequency a key.
    overhead += geometry.planes() * (1 + 4 * uint64_t{plan.prompt_tokens});
  }
  charge.overhead = Bytes(static_cast<int64_t>(overhead));
  return charge;
}

}  // namespace

Charge PeakCharge(const Layout& layout, const Policy& policy, const SealRule& seal,
                  const SessionPlan& plan) {
  return PeakCharge(layout, policy, policy.Needs(), seal, plan);
}

Charge PeakCharge(const Layout& layout, const Policy& policy, const PolicyNeeds& needs,
                  const SealRule& seal, const SessionPlan& plan) {
  const Rows rows = Compacts(layout, policy, seal, plan) ? Rows::kGo : Rows::kStay;
  return ChargeFor(layout, policy.PeakTokens(plan), rows, needs, seal, plan);
}

Charge WholeCharge(const Layout& layout, const PolicyNeeds& needs, const SealRule& seal,
                   const SessionPlan& plan) {
  return ChargeFor(layout, plan.max_tokens, Rows::kGo, needs, seal, plan);
}

absl::Status CheckMeasurable(double min_recovery, QueryOffer offer) {
  if (offer == QueryOffer::kAll || min_recovery <= 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "policy auto measures by a session's queries what its compactions keep, and this worker said "
      "at attach that it pushes none; give the tenant a fixed policy, or min_recovery 0");
}

absl::Status CheckQueries(const PolicySpec& spec, const Policy& policy, QueryOffer offer) {
  const auto needed = [](const Policy& of) {
    const QueryNeed need = of.Needs().queries;
    return need == QueryNeed::kExact || need == QueryNeed::kPrompt;
  };
  if (offer == QueryOffer::kAll || !needed(policy)) return absl::OkStatus();
  std::vector<std::string> allowed;
  for (const PolicySchema& schema : PolicySchemas()) {
    if (!needed(*MakePolicy(*MakePolicySpec(schema.name, {})))) allowed.push_back(schema.name);
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "policy ", spec.name, " needs the queries of a session, and this worker said at ",
      "attach that it pushes none; it can serve tenants with ", absl::StrJoin(allowed, ", ")));
}

uint32_t ShareableTokens(const Layout& layout, const Policy& policy, const SessionPlan& plan) {
  const PolicyNeeds needs = policy.Needs();
  if (needs.profile.has_value() || needs.planes.flags) return 0;
  const bool rows = needs.queries == QueryNeed::kExact || needs.queries == QueryNeed::kPrompt;
  const uint32_t own = std::max(1u, rows ? needs.prompt_rows : 0);
  const uint32_t tokens = plan.prompt_tokens > own ? plan.prompt_tokens - own : 0;
  const auto first = policy.NextCompactAt({.geometry = &layout.geometry(), .plan = plan});
  return std::min(tokens, first.value_or(tokens));
}

uint32_t ReservePages(const Layout& layout, SealedFormat format) {
  return CeilDiv(layout.geometry().planes(), PagePlaces(layout, format).per_page());
}

uint32_t ReserveSlabs(const Layout& layout, SealedFormat format) {
  return CeilDiv(ReservePages(layout, format), layout.pages_per_slab());
}

absl::Status CheckReserve(const Layout& layout, SealedFormat format, uint32_t slabs) {
  if (format == SealedFormat::kNone || ReserveSlabs(layout, format) <= slabs) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrCat("the policy's format is ", NameOf(format),
                   ", and what is stored in it goes through ", ReserveSlabs(layout, format),
                   " slabs that the agent must keep in reserve; its reserve_slabs is ", slabs));
}

absl::Status CheckFormat(const Layout& layout, std::span<const SealedFormat> device,
                         SealedFormat format) {
  std::vector<std::string> allowed = {NameOf(SealedFormat::kNone)};
  for (SealedFormat known : device) {
    if (RowsThatFreeAPage(layout, known) > 0) allowed.emplace_back(NameOf(known));
  }
  const std::string name = NameOf(format);
  if (std::find(allowed.begin(), allowed.end(), name) != allowed.end()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "the policy's format is ", name, ", which this device cannot read or in which ",
      "this cache would take no less room; it must be ", absl::StrJoin(allowed, " or ")));
}

uint32_t OverheadSlabs(const Layout& layout, const Charge& charge) {
  return static_cast<uint32_t>(CeilDiv(charge.overhead.value(), layout.slab_bytes().value()));
}

uint32_t SlabsFor(const Layout& layout, const Charge& charge) {
  return static_cast<uint32_t>(CeilDiv<uint64_t>(charge.pages, layout.pages_per_slab())) +
         OverheadSlabs(layout, charge);
}

TenantCharges::OfLayout& TenantCharges::Of(const Layout& layout) {
  auto same = std::find_if(layouts_.begin(), layouts_.end(),
                           [&](const OfLayout& one) { return *one.layout == layout; });
  if (same == layouts_.end()) same = layouts_.insert(same, OfLayout{&layout, {}, {}});
  return *same;
}

void TenantCharges::Add(const Layout& layout, const Charge& charge) { Of(layout).charge += charge; }

void TenantCharges::AddHeadroom(const Layout& layout, const Charge& growth) {
  if (growth != Charge()) Of(layout).growths.push_back(growth);
}

uint32_t TenantCharges::HeadroomSlabs() const {
  uint32_t most = 0;
  for (const OfLayout& one : layouts_) {
    const uint32_t now = SlabsFor(*one.layout, one.charge);
    for (const Charge& growth : one.growths) {
      Charge grown = one.charge;
      grown += growth;
      most = std::max(most, SlabsFor(*one.layout, grown) - now);
    }
  }
  return most;
}

uint32_t TenantCharges::Slabs() const {
  uint32_t slabs = HeadroomSlabs();
  for (const OfLayout& one : layouts_) slabs += SlabsFor(*one.layout, one.charge);
  return slabs;
}

uint32_t TenantCharges::WantedSlabs() const {
  uint32_t slabs = HeadroomSlabs();
  for (const OfLayout& one : layouts_) slabs += std::max(1u, SlabsFor(*one.layout, one.charge));
  return slabs;
}

uint32_t TenantCharges::UsableSlabs(uint32_t lease_slabs) const {
  uint32_t overhead = 0;
  for (const OfLayout& one : layouts_) overhead += OverheadSlabs(*one.layout, one.charge);
  return lease_slabs > overhead ? lease_slabs - overhead : 0;
}

}  // namespace kvpool

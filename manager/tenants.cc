// Checks on changes of the tenants, with the arithmetic in the answer.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/tenants.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/quantity.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

constexpr size_t kTokenIdDigits = 12;
constexpr size_t kTermsShown = 4;

using Amounts = std::map<std::string, Bytes>;  // tenant -> bytes
using Specs = std::map<std::string, TenantSpec>;

// "chat 16 MiB + batch 8 MiB + 3 others 2 MiB", the largest first.
std::string ShowSum(const Amounts& amounts) {
  std::vector<std::pair<Bytes, std::string>> terms;
  for (const auto& [name, bytes] : amounts) {
    if (bytes > 0_B) terms.emplace_back(bytes, name);
  }
  std::sort(terms.rbegin(), terms.rend());
  std::string text;
  Bytes others;
  for (size_t i = 0; i < terms.size(); ++i) {
    if (i < kTermsShown) {
      absl::StrAppend(&text, i == 0 ? "" : " + ", terms[i].second, " ",
                      FormatBytes(terms[i].first));
    } else {
      others += terms[i].first;
    }
  }
  if (others > 0_B) {
    absl::StrAppend(&text, " + ", terms.size() - kTermsShown, " others ", FormatBytes(others));
  }
  return text;
}

Bytes Sum(const Amounts& amounts) {
  Bytes sum;
  for (const auto& [name, bytes] : amounts) sum += bytes;
  return sum;
}

// One sum over all tenants that must stay within bounds.
struct SumRule {
  std::string what;  // "the guarantees do not fit"
  std::function<Bytes(const TenantSpec&)> amount;
  Bytes room;
  std::string room_text;  // "the agents' pools hold 27 MiB"
  std::string advice;
};

absl::Status Check(const SumRule& rule, const Specs& before, const Specs& after) {
  Amounts now, then;
  for (const auto& [name, spec] : before) now[name] = rule.amount(spec);
  for (const auto& [name, spec] : after) then[name] = rule.amount(spec);
  const Bytes sum = Sum(then);
  if (sum <= rule.room || sum <= Sum(now)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(rule.what, ": ", ShowSum(then), " = ",
                                                 FormatBytes(sum), ", but ", rule.room_text, "; ",
                                                 rule.advice));
}

std::vector<SumRule> RulesFor(const Pools& pools) {
  Bytes capacity;
  for (const auto& [agent, bytes] : pools.agents) capacity += bytes;
  const std::string hold = "the agents' pools hold " + FormatBytes(capacity);
  const Bytes most((capacity.value() / 100) * pools.oversubscription_percent +
                   (capacity.value() % 100) * pools.oversubscription_percent / 100);
  std::vector<SumRule> rules = {
      {"the guarantees do not fit", [](const TenantSpec& spec) { return spec.guaranteed; },
       capacity, hold, "guarantee less or add agents"},
      {"the limits are too large", [](const TenantSpec& spec) { return spec.limit; }, most,
       absl::StrCat(hold, ", and an oversubscription of ", pools.oversubscription_percent,
                    " % allows ", FormatBytes(most)),
       "lower limits, add agents, or raise oversubscription_percent"}};
  for (const auto& [agent, bytes] : pools.agents) {
    rules.push_back({absl::StrCat("the floors at agent \"", agent, "\" do not fit"),
                     [agent = agent](const TenantSpec& spec) {
                       const auto floor = spec.floors.find(agent);
                       return floor == spec.floors.end() ? 0_B : floor->second;
                     },
                     bytes, "its pool holds " + FormatBytes(bytes),
                     "lower a floor, or move it to another agent"});
  }
  return rules;
}

// With another ladder it goes on with the policy that it had, if that is there, else at the bottom.
TenantRung RungAfter(const Tenant& before, const TenantSpec& spec) {
  if (!spec.ladder.has_value()) return {};
  if (before.spec.ladder.has_value() && before.spec.ladder->rungs == spec.ladder->rungs) {
    return before.rung;
  }
  const std::vector<PolicySpec>& rungs = spec.ladder->rungs;
  const auto same = std::find(rungs.begin(), rungs.end(), before.policy());
  if (same == rungs.end()) return {};
  return {.index = static_cast<uint32_t>(same - rungs.begin()),
          .reason = "the operator changed the ladder"};
}

}  // namespace

std::string TokenId(const Sha256Hash& hash) { return ToHex(hash).substr(0, kTokenIdDigits); }

TenantTable::TenantTable(std::vector<Tenant> tenants, TenantId next_id) : next_id_(next_id) {
  for (Tenant& tenant : tenants) {
    std::string name = tenant.spec.name;
    tenants_.emplace(std::move(name), std::move(tenant));
  }
}

const Tenant* TenantTable::Find(const std::string& name) const {
  const auto found = tenants_.find(name);
  return found == tenants_.end() ? nullptr : &found->second;
}

absl::StatusOr<Tenant> TenantTable::Get(const std::string& name) const {
  if (const Tenant* tenant = Find(name); tenant != nullptr) return *tenant;
  return absl::NotFoundError(absl::StrCat("tenant \"", name, "\" does not exist"));
}

absl::StatusOr<std::vector<Tenant>> TenantTable::PlanApply(const std::vector<TenantSpec>& specs,
                                                           const Pools& pools) const {
  Specs before;
  for (const auto& [name, tenant] : tenants_) before[name] = tenant.spec;
  Specs after = before;
  std::vector<Tenant> changed;
  TenantId next_id = next_id_;
  for (const TenantSpec& spec : specs) {
    if (absl::Status status = CheckTenantSpec(spec); !status.ok()) return status;
    const bool twice = std::count_if(specs.begin(), specs.end(), [&](const TenantSpec& other) {
                         return other.name == spec.name;
                       }) > 1;
    if (twice) {
      return absl::InvalidArgumentError(absl::StrCat("tenant \"", spec.name, "\" is there twice"));
    }
    after[spec.name] = spec;
    if (const Tenant* tenant = Find(spec.name); tenant == nullptr) {
      changed.push_back({.id = next_id, .spec = spec, .revision = 1});
      next_id += TenantId(1);
    } else if (tenant->spec != spec || tenant->leaving) {
      changed.push_back(*tenant);
      changed.back().leaving = false;
      changed.back().spec = spec;
      changed.back().rung = RungAfter(*tenant, spec);
      ++changed.back().revision;
    }
  }
  if (after.size() > limits::kTenants) {
    return absl::ResourceExhaustedError(
        absl::StrCat(after.size(), " tenants are too many; ", limits::kTenants, " are allowed"));
  }
  if (pools.agents.empty()) return changed;
  for (const SumRule& rule : RulesFor(pools)) {
    if (absl::Status status = Check(rule, before, after); !status.ok()) return status;
  }
  return changed;
}

absl::Status TenantTable::CheckRevision(const std::string& name, uint64_t revision) const {
  const Tenant* tenant = Find(name);
  const uint64_t now = tenant == nullptr ? 0 : tenant->revision;
  if (now == revision) return absl::OkStatus();
  return absl::AbortedError(absl::StrCat("tenant \"", name, "\" is at revision ", now,
                                         ", the change was made for revision ", revision,
                                         "; look at it again and repeat the change"));
}

absl::StatusOr<Tenant> TenantTable::PlanLeave(const std::string& name) const {
  absl::StatusOr<Tenant> tenant = Get(name);
  if (!tenant.ok() || tenant->leaving) return tenant;
  tenant->leaving = true;
  tenant->spec.guaranteed = tenant->spec.limit = 0_B;
  tenant->spec.floors.clear();
  ++tenant->revision;
  return tenant;
}

absl::StatusOr<Tenant> TenantTable::PlanAddToken(const std::string& name,
                                                 const Sha256Hash& hash) const {
  absl::StatusOr<Tenant> tenant = Get(name);
  if (!tenant.ok()) return tenant;
  if (tenant->leaving) {
    return absl::FailedPreconditionError(
        absl::StrCat("tenant \"", name, "\" is being deleted; apply it again to keep it"));
  }
  if (tenant->tokens.size() >= limits::kTokensPerTenant) {
    return absl::ResourceExhaustedError(
        absl::StrCat("tenant \"", name, "\" has ", tenant->tokens.size(),
                     " tokens, the most allowed; revoke one first"));
  }
  tenant->tokens.push_back(hash);
  return tenant;
}

absl::StatusOr<Tenant> TenantTable::PlanRevokeToken(const std::string& name,
                                                    const std::string& token_id) const {
  absl::StatusOr<Tenant> tenant = Get(name);
  if (!tenant.ok()) return tenant;
  const size_t revoked = std::erase_if(
      tenant->tokens, [&](const Sha256Hash& hash) { return TokenId(hash) == token_id; });
  if (revoked == 0) {
    return absl::NotFoundError(
        absl::StrCat("tenant \"", name, "\" has no token \"", token_id, "\""));
  }
  return tenant;
}

void TenantTable::Commit(const std::vector<Tenant>& changed) {
  for (const Tenant& tenant : changed) {
    tenants_[tenant.spec.name] = tenant;
    next_id_ = std::max(next_id_, tenant.id + TenantId(1));
  }
}

void TenantTable::Remove(const std::string& name) { tenants_.erase(name); }

}  // namespace kvpool

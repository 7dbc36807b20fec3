// Checks on changes of the tenants, with the arithmetic in the answer.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/tenants.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/quantity.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

constexpr size_t kTokenIdDigits = 12;
constexpr size_t kTermsShown = 4;

// "chat 16 MiB + batch 8 MiB + 3 others 2 MiB", the largest first.
std::string ShowSum(const std::map<std::string, Bytes>& guarantees) {
  std::vector<std::pair<Bytes, std::string>> terms;
  for (const auto& [name, bytes] : guarantees) {
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

Bytes Sum(const std::map<std::string, Bytes>& guarantees) {
  Bytes sum;
  for (const auto& [name, bytes] : guarantees) sum += bytes;
  return sum;
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

absl::Status TenantTable::CheckGuarantees(const std::map<std::string, Bytes>& guarantees,
                                          Bytes capacity) const {
  std::map<std::string, Bytes> before;
  for (const auto& [name, tenant] : tenants_) before[name] = tenant.spec.guaranteed;
  const Bytes sum = Sum(guarantees);
  if (sum <= capacity || sum <= Sum(before)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "the guarantees do not fit: ", ShowSum(guarantees), " = ", FormatBytes(sum),
      ", but the agents' pools hold ", FormatBytes(capacity), "; guarantee less or add agents"));
}

absl::StatusOr<std::vector<Tenant>> TenantTable::PlanApply(const std::vector<TenantSpec>& specs,
                                                           std::optional<Bytes> capacity) const {
  std::map<std::string, Bytes> guarantees;
  for (const auto& [name, tenant] : tenants_) guarantees[name] = tenant.spec.guaranteed;
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
    guarantees[spec.name] = spec.guaranteed;
    if (const Tenant* tenant = Find(spec.name); tenant == nullptr) {
      changed.push_back({.id = next_id, .spec = spec, .revision = 1});
      next_id += TenantId(1);
    } else if (tenant->spec != spec) {
      changed.push_back(*tenant);
      changed.back().spec = spec;
      ++changed.back().revision;
    }
  }
  if (guarantees.size() > limits::kTenants) {
    return absl::ResourceExhaustedError(absl::StrCat(guarantees.size(), " tenants are too many; ",
                                                     limits::kTenants, " are allowed"));
  }
  if (capacity.has_value()) {
    if (absl::Status status = CheckGuarantees(guarantees, *capacity); !status.ok()) return status;
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

absl::StatusOr<Tenant> TenantTable::PlanAddToken(const std::string& name,
                                                 const Sha256Hash& hash) const {
  absl::StatusOr<Tenant> tenant = Get(name);
  if (!tenant.ok()) return tenant;
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

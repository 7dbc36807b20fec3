// JSON in and out.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/records.h"

#include <algorithm>
#include <boost/json.hpp>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/json.h"
#include "common/tenant_json.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

namespace json = boost::json;

constexpr char kTenant[] = "tenant/";
constexpr char kNextTenant[] = "next-tenant";
constexpr char kAgent[] = "agent/";
constexpr char kBounds[] = "bounds/";
constexpr char kDrain[] = "drain/";
constexpr char kOperator[] = "operator/";
constexpr char kAudit[] = "audit/";

std::string TenantKey(TenantId id) { return absl::StrCat(kTenant, id.value()); }

// Equally long, so that they sort by number.
std::string AuditKey(uint64_t seq) {
  return absl::StrCat(kAudit, absl::Dec(seq, absl::kZeroPad20));
}

absl::StatusOr<std::vector<Sha256Hash>> ReadHashes(const json::value* list) {
  if (list == nullptr || !list->is_array()) {
    return absl::InvalidArgumentError("\"tokens\" must be a list");
  }
  std::vector<Sha256Hash> hashes;
  for (const json::value& item : list->get_array()) {
    const auto hash = item.is_string() ? FromHex(std::string(item.get_string()))
                                       : absl::InvalidArgumentError("a token must be text");
    if (!hash.ok()) return hash.status();
    hashes.push_back(*hash);
  }
  return hashes;
}

// False when it is missing.
absl::StatusOr<bool> ReadFlag(const json::value* flag) {
  if (flag == nullptr) return false;
  if (!flag->is_bool()) return absl::InvalidArgumentError("a flag must be true or false");
  return flag->get_bool();
}

// Of a tenant whose ladder has so many rungs; at the bottom when it is missing.
absl::StatusOr<TenantRung> ReadRung(JsonObject& tenant, size_t rungs) {
  if (!tenant.Has("rung")) return TenantRung();
  auto object = tenant.Child("rung", "where on its ladder it is");
  if (!object.ok()) return object.status();
  const auto index = object->Integer("index", 0, static_cast<int64_t>(rungs) - 1);
  if (!index.ok()) return index.status();
  auto reason = object->Text("reason", limits::kHttpBodyBytes);
  if (!reason.ok()) return reason.status();
  if (absl::Status status = object->Finish(); !status.ok()) return status;
  return TenantRung{.index = static_cast<uint32_t>(*index), .reason = *std::move(reason)};
}

absl::StatusOr<Tenant> ReadTenant(const json::value& value) {
  auto object = JsonObject::From(value, "tenant");
  if (!object.ok()) return object.status();
  const auto id = object->Integer("id", 1, std::numeric_limits<uint32_t>::max() - 1);
  if (!id.ok()) return id.status();
  const auto revision = object->Integer("revision", 1, std::numeric_limits<int64_t>::max());
  if (!revision.ok()) return revision.status();
  auto fields = object->Child("spec", "what the operator has set");
  if (!fields.ok()) return fields.status();
  auto spec = TenantFromJson(*fields, "");
  if (!spec.ok()) return spec.status();
  auto tokens = ReadHashes(object->Take("tokens"));
  if (!tokens.ok()) return tokens.status();
  const auto leaving = ReadFlag(object->Take("leaving"));
  if (!leaving.ok()) return leaving.status();
  auto rung = ReadRung(*object, spec->ladder.has_value() ? spec->ladder->rungs.size() : 0);
  if (!rung.ok()) return rung.status();
  for (const absl::Status& status : {fields->Finish(), object->Finish()}) {
    if (!status.ok()) return status;
  }
  return Tenant{.id = TenantId(static_cast<uint32_t>(*id)),
                .spec = *std::move(spec),
                .revision = static_cast<uint64_t>(*revision),
                .leaving = *leaving,
                .tokens = *std::move(tokens),
                .rung = *std::move(rung)};
}

absl::StatusOr<AgentInfo> ReadAgent(const std::string& name, const json::value& value) {
  auto object = JsonObject::From(value, "agent");
  if (!object.ok()) return object.status();
  AgentInfo agent{.name = name};
  const auto incarnation = object->Text("incarnation", limits::kNameBytes);
  if (!incarnation.ok()) return incarnation.status();
  if (!absl::SimpleAtoi(*incarnation, &agent.incarnation)) {
    return absl::InvalidArgumentError("\"incarnation\" must be a number in text");
  }
  const Bytes most(std::numeric_limits<int64_t>::max());
  const auto pool = object->Quantity("pool", 0_B, most);
  if (!pool.ok()) return pool.status();
  agent.pool_bytes = *pool;
  const auto slab = object->Quantity("slab", 1_B, most);
  if (!slab.ok()) return slab.status();
  agent.slab_bytes = *slab;
  const auto device = object->Text("device", limits::kPolicyTextBytes);
  if (!device.ok()) return device.status();
  agent.device = *device;
  if (absl::Status status = object->Finish(); !status.ok()) return status;
  return agent;
}

absl::StatusOr<AgentSettings> ReadSettings(const json::value& value) {
  auto object = JsonObject::From(value, "drain");
  if (!object.ok()) return object.status();
  const auto draining = ReadFlag(object->Take("draining"));
  if (!draining.ok()) return draining.status();
  const auto revision = object->Integer("revision", 0, std::numeric_limits<int64_t>::max());
  if (!revision.ok()) return revision.status();
  if (absl::Status status = object->Finish(); !status.ok()) return status;
  return AgentSettings{.draining = *draining, .revision = static_cast<uint64_t>(*revision)};
}

absl::StatusOr<LeaseBounds> ReadBounds(const json::value& value) {
  auto object = JsonObject::From(value, "bounds");
  if (!object.ok()) return object.status();
  LeaseBounds bounds;
  for (const std::string& key : object->Keys()) {
    uint32_t tenant = 0;
    if (!absl::SimpleAtoi(key, &tenant)) return absl::InvalidArgumentError("a tenant is its id");
    const auto slabs = object->Integer(key, 0, std::numeric_limits<int64_t>::max());
    if (!slabs.ok()) return slabs.status();
    bounds[TenantId(tenant)] = *slabs;
  }
  return bounds;
}

absl::StatusOr<Operator> ReadOperator(const Sha256Hash& token, const json::value& value) {
  auto object = JsonObject::From(value, "operator");
  if (!object.ok()) return object.status();
  if (object->Keys().empty()) {
    return Operator{.name = NameOfFirst(token), .scope = Scope::kAdmin, .token = token};
  }
  const auto name = object->Text("name", limits::kNameBytes);
  if (!name.ok()) return name.status();
  if (absl::Status status = CheckName("operator", *name); !status.ok()) return status;
  const auto text = object->Text("scope", limits::kNameBytes);
  if (!text.ok()) return text.status();
  const auto scope = ParseScope(*text);
  if (!scope.ok()) return scope.status();
  if (absl::Status status = object->Finish(); !status.ok()) return status;
  return Operator{.name = *name, .scope = *scope, .token = token};
}

absl::StatusOr<AuditEntry> ReadAudit(const json::value& value) {
  auto object = JsonObject::From(value, "audit entry");
  if (!object.ok()) return object.status();
  AuditEntry entry;
  const auto seq = object->Integer("seq", 1, std::numeric_limits<int64_t>::max());
  if (!seq.ok()) return seq.status();
  entry.seq = static_cast<uint64_t>(*seq);
  const auto revision = object->Integer("revision", 0, std::numeric_limits<int64_t>::max());
  if (!revision.ok()) return revision.status();
  entry.revision = static_cast<uint64_t>(*revision);
  for (const auto& [field, text] :
       {std::pair("time", &entry.time), std::pair("actor", &entry.actor),
        std::pair("action", &entry.action), std::pair("kind", &entry.kind),
        std::pair("name", &entry.name)}) {
    auto read = object->Text(field, limits::kNameBytes);
    if (!read.ok()) return read.status();
    *text = *std::move(read);
  }
  if (const json::value* before = object->Take("before")) entry.before = *before;
  if (const json::value* after = object->Take("after")) entry.after = *after;
  if (absl::Status status = object->Finish(); !status.ok()) return status;
  return entry;
}

// What is read before it is put together.
struct Parts {
  Records records;
  std::map<std::string, LeaseBounds> bounds;      // by agent
  std::map<std::string, AgentSettings> settings;  // likewise
};

// One record into `parts`.
absl::Status ReadRecord(const std::string& key, const json::value& value, Parts& parts) {
  Records& records = parts.records;
  const auto below = [&](std::string_view prefix) -> std::optional<std::string> {
    if (!std::string_view(key).starts_with(prefix)) return std::nullopt;
    return key.substr(prefix.size());
  };
  if (const auto id = below(kTenant)) {
    auto tenant = ReadTenant(value);
    if (!tenant.ok()) return tenant.status();
    if (TenantKey(tenant->id) != key) return absl::InvalidArgumentError("it has another id");
    records.tenants.push_back(*std::move(tenant));
    return absl::OkStatus();
  }
  if (const auto name = below(kAgent)) {
    auto agent = ReadAgent(*name, value);
    if (!agent.ok()) return agent.status();
    records.agents.push_back({.info = *std::move(agent)});
    return CheckName("agent", *name);
  }
  if (const auto name = below(kBounds)) {
    auto bounds = ReadBounds(value);
    if (!bounds.ok()) return bounds.status();
    parts.bounds[*name] = *std::move(bounds);
    return absl::OkStatus();
  }
  if (const auto name = below(kDrain)) {
    const auto settings = ReadSettings(value);
    if (!settings.ok()) return settings.status();
    parts.settings[*name] = *settings;
    return absl::OkStatus();
  }
  if (below(kAudit).has_value()) {
    auto entry = ReadAudit(value);
    if (!entry.ok()) return entry.status();
    if (AuditKey(entry->seq) != key) return absl::InvalidArgumentError("it has another number");
    records.audit.push_back(*std::move(entry));
    return absl::OkStatus();
  }
  if (const auto text = below(kOperator)) {
    const auto hash = FromHex(*text);
    if (!hash.ok()) return hash.status();
    auto known = ReadOperator(*hash, value);
    if (!known.ok()) return known.status();
    records.operators.push_back(*std::move(known));
    return absl::OkStatus();
  }
  if (key == kNextTenant) {
    if (!value.is_int64() || value.get_int64() < 1 ||
        value.get_int64() > std::numeric_limits<uint32_t>::max()) {
      return absl::InvalidArgumentError("it must be a whole number above 0");
    }
    records.next_tenant_id = TenantId(static_cast<uint32_t>(value.get_int64()));
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError("this manager knows no such record");
}

}  // namespace

absl::StatusOr<Records> ReadRecords(const Store::Contents& contents) {
  Parts parts;
  for (const auto& [key, text] : contents.records) {
    const auto value = ParseJson(text);
    const absl::Status status = value.ok() ? ReadRecord(key, *value, parts) : value.status();
    if (status.ok()) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        "the store's record \"", key, "\" cannot be read: ", std::string(status.message()),
        "; run the manager that wrote it, or a newer one"));
  }
  Records records = std::move(parts.records);
  std::set<TenantId> tenants;
  for (const Tenant& tenant : records.tenants) {
    tenants.insert(tenant.id);
    records.next_tenant_id = std::max(records.next_tenant_id, tenant.id + TenantId(1));
  }
  for (KnownAgent& agent : records.agents) {
    agent.bounds = std::move(parts.bounds[agent.info.name]);
    agent.settings = parts.settings[agent.info.name];
    // A tenant that was deleted since had no lease then.
    std::erase_if(agent.bounds, [&](const auto& bound) { return !tenants.contains(bound.first); });
  }
  return records;
}

Store::Changes SaveTenants(const std::vector<Tenant>& tenants, TenantId next_id) {
  Store::Changes changes;
  for (const Tenant& tenant : tenants) {
    json::array tokens;
    for (const Sha256Hash& hash : tenant.tokens) tokens.emplace_back(ToHex(hash));
    json::object record{{"id", tenant.id.value()},
                        {"revision", tenant.revision},
                        {"spec", ToJson(tenant.spec)},
                        {"tokens", std::move(tokens)}};
    if (tenant.leaving) record["leaving"] = true;
    if (tenant.rung != TenantRung()) {
      record["rung"] = json::object{{"index", tenant.rung.index}, {"reason", tenant.rung.reason}};
    }
    changes[TenantKey(tenant.id)] = json::serialize(record);
    next_id = std::max(next_id, tenant.id + TenantId(1));
  }
  changes[kNextTenant] = std::to_string(next_id.value());
  return changes;
}

Store::Changes RemoveTenant(TenantId tenant) { return {{TenantKey(tenant), std::nullopt}}; }

Store::Changes SaveAgent(const AgentInfo& agent) {
  return {{kAgent + agent.name,
           json::serialize(json::object{{"incarnation", std::to_string(agent.incarnation)},
                                        {"pool", agent.pool_bytes.value()},
                                        {"slab", agent.slab_bytes.value()},
                                        {"device", agent.device}})}};
}

Store::Changes SaveBounds(const std::string& agent, const LeaseBounds& bounds) {
  json::object slabs;
  for (const auto& [tenant, bound] : bounds) slabs[std::to_string(tenant.value())] = bound;
  return {{kBounds + agent, json::serialize(slabs)}};
}

Store::Changes SaveSettings(const std::string& agent, const AgentSettings& settings) {
  return {{kDrain + agent, json::serialize(json::object{{"draining", settings.draining},
                                                        {"revision", settings.revision}})}};
}

Store::Changes RemoveAgent(const std::string& name) {
  return {
      {kAgent + name, std::nullopt}, {kBounds + name, std::nullopt}, {kDrain + name, std::nullopt}};
}

Store::Changes SaveOperator(const Operator& added) {
  return {{kOperator + ToHex(added.token),
           json::serialize(json::object{{"name", added.name}, {"scope", ToString(added.scope)}})}};
}

Store::Changes RemoveOperator(const Sha256Hash& token) {
  return {{kOperator + ToHex(token), std::nullopt}};
}

Store::Changes SaveAudit(const std::vector<AuditEntry>& numbered,
                         const std::vector<uint64_t>& dropped) {
  Store::Changes changes;
  for (const uint64_t seq : dropped) changes[AuditKey(seq)] = std::nullopt;
  for (const AuditEntry& entry : numbered) {
    changes[AuditKey(entry.seq)] = json::serialize(ToJson(entry));
  }
  return changes;
}

}  // namespace kvpool

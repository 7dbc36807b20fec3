// Which columns, in which order.
//
// SPDX-License-Identifier: Apache-2.0
#include "client/cli/render.h"

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "client/cli/table.h"
#include "common/policy_spec.h"

namespace kvpool {
namespace {

namespace json = boost::json;

constexpr size_t kBarWidth = 20;

int64_t Number(const json::object& object, const char* key) {
  const json::value* value = object.if_contains(key);
  return value != nullptr && value->is_int64() ? value->get_int64() : 0;
}

std::string Text(const json::object& object, const char* key) {
  const json::value* value = object.if_contains(key);
  return value != nullptr && value->is_string() ? std::string(value->get_string()) : "";
}

std::string Size(const json::object& object, const char* key) {
  return HumanBytes(Number(object, key));
}

std::string Count(const json::object& object, const char* key) {
  return std::to_string(Number(object, key));
}

json::object ObjectOf(const json::object& object, const char* key) {
  const json::value* value = object.if_contains(key);
  return value != nullptr && value->is_object() ? value->get_object() : json::object();
}

// "0.973", or "-" when it was not measured.
std::string Share(const json::object& object, const char* key) {
  const json::value* value = object.if_contains(key);
  if (value == nullptr || !value->is_number()) return "-";
  char text[32];
  snprintf(text, sizeof(text), "%.3f", value->to_number<double>());
  return text;
}

// A parameter's value as an operator writes it.
std::string ParameterText(const json::value& value) {
  if (value.is_int64()) return ToString(PolicyValue(value.get_int64()));
  if (value.is_double()) return ToString(PolicyValue(value.get_double()));
  return value.is_string() ? std::string(value.get_string()) : json::serialize(value);
}

// "scissorhands(budget=256,drop=128)"
std::string Policy(const json::object& tenant) {
  const json::object policy = ObjectOf(tenant, "policy");
  std::string parameters;
  for (const auto& field : policy) {
    if (field.key() == "name" || !(field.value().is_number() || field.value().is_string()))
      continue;
    absl::StrAppend(&parameters, parameters.empty() ? "" : ",", std::string(field.key()), "=",
                    ParameterText(field.value()));
  }
  return Text(policy, "name") + (parameters.empty() ? "" : "(" + parameters + ")");
}

// What an operator should know about figures that such a policy works by.
std::string Caveat(const json::object& tenant) {
  const bool sampled = Text(ObjectOf(tenant, "policy"), "profile") == "sampled";
  return sampled ? "  (approximate: its profile is sampled)" : "";
}

std::string State(const json::object& agent) {
  const json::value* connected = agent.if_contains("connected");
  return connected != nullptr && connected->is_bool() && connected->get_bool() ? "connected"
                                                                               : "away";
}

// "10 MiB", with what it comes to in whole slabs where that is less.
std::string Budget(const json::object& tenant, const char* key) {
  const json::object effective = ObjectOf(tenant, "effective");
  const bool rounded = effective.contains(key) && Number(effective, key) != Number(tenant, key);
  return Size(tenant, key) +
         (rounded ? " (effective " + Size(effective, key) + ": whole slabs)" : "");
}

std::string ReportAge(const json::object& agent) {
  const json::value* age = agent.if_contains("report_age_ms");
  return age != nullptr && age->is_int64() ? HumanAge(age->get_int64()) : "never";
}

// What one tenant has at one agent; `key` names the other side.
std::string RenderShares(const json::array& shares, const char* key, const char* header) {
  Table table({{header},
               {"USED", Align::kRight},
               {"CHARGED", Align::kRight},
               {"HELD", Align::kRight},
               {"LEASED", Align::kRight},
               {"ORDERED", Align::kRight},
               {"WANTED", Align::kRight},
               {"SESSIONS", Align::kRight},
               {"WORKERS", Align::kRight}});
  for (const json::value& value : shares) {
    if (!value.is_object()) continue;
    const json::object& share = value.get_object();
    table.Add({Text(share, key), Size(share, "used"), Size(share, "charged"), Size(share, "held"),
               Size(share, "leased"), Size(share, "ordered"), Size(share, "wanted"),
               Count(share, "sessions"), Count(share, "workers")});
  }
  return table.ToText(2);
}

std::string RenderReclaims(const json::array& reclaims) {
  Table table({{"LAST", Align::kRight},
               {"FIRST", Align::kRight},
               {"COUNT", Align::kRight},
               {"AGENT"},
               {"STEP"},
               {"REASON"},
               {"SESSIONS", Align::kRight},
               {"BYTES", Align::kRight},
               {"BEFORE", Align::kRight},
               {"AFTER", Align::kRight},
               {"RECOVERY", Align::kRight},
               {"MIN", Align::kRight},
               {"CUMULATIVE", Align::kRight},
               {"MIN", Align::kRight},
               {"POLICY"}});
  for (const json::value& value : reclaims) {
    if (!value.is_object()) continue;
    const json::object& entry = value.get_object();
    table.Add({HumanAge(Number(entry, "age_ms")), HumanAge(Number(entry, "first_age_ms")),
               Count(entry, "count"), Text(entry, "agent"), Text(entry, "step"),
               Text(entry, "reason"), Count(entry, "sessions"), Size(entry, "bytes"),
               Size(entry, "bytes_before"), Size(entry, "bytes_after"), Share(entry, "recovery"),
               Share(entry, "recovery_min"), Share(entry, "cumulative_recovery"),
               Share(entry, "cumulative_recovery_min"), Text(entry, "policy")});
  }
  return table.empty() ? "  none\n" : table.ToText(2);
}

}  // namespace

json::array ListOf(const json::object& object, const std::string& key) {
  const json::value* value = object.if_contains(key);
  return value != nullptr && value->is_array() ? value->get_array() : json::array();
}

std::string RenderTenants(const json::array& tenants) {
  Table table({{"NAME"},
               {"GUARANTEED", Align::kRight},
               {"LIMIT", Align::kRight},
               {"LEASED", Align::kRight},
               {"HELD", Align::kRight},
               {"CHARGED", Align::kRight},
               {"USED", Align::kRight},
               {"WANTED", Align::kRight},
               {"SESSIONS", Align::kRight},
               {"REFUSALS", Align::kRight},
               {"COMPACTIONS", Align::kRight},
               {"RECOVERY", Align::kRight},
               {"POLICY"}});
  for (const json::value& value : tenants) {
    if (!value.is_object()) continue;
    const json::object& tenant = value.get_object();
    table.Add({Text(tenant, "name"), Size(tenant, "guaranteed"), Size(tenant, "limit"),
               Size(tenant, "leased"), Size(tenant, "held"), Size(tenant, "charged"),
               Size(tenant, "used"), Size(tenant, "wanted"), Count(tenant, "sessions"),
               Count(tenant, "refusals"), Count(tenant, "compactions"),
               Share(ObjectOf(tenant, "recovery"), "mean"), Policy(tenant)});
  }
  return table.ToText();
}

std::string RenderAgents(const json::array& agents) {
  Table table({{"NAME"},
               {"STATE"},
               {"DEVICE"},
               {"POOL", Align::kRight},
               {"SLAB", Align::kRight},
               {"LEASED", Align::kRight},
               {"CHARGED", Align::kRight},
               {"FREE", Align::kRight},
               {"STUCK", Align::kRight},
               {"REPORT", Align::kRight}});
  for (const json::value& value : agents) {
    if (!value.is_object()) continue;
    const json::object& agent = value.get_object();
    table.Add({Text(agent, "name"), State(agent), Text(agent, "device"), Size(agent, "pool"),
               Size(agent, "slab"), Size(agent, "leased"), Size(agent, "charged"),
               Size(agent, "free"), Size(agent, "stuck"), ReportAge(agent)});
  }
  return table.ToText();
}

std::string RenderTenant(const json::object& tenant, const json::object& reclaims) {
  const json::object recovery = ObjectOf(tenant, "recovery");
  std::string tokens;
  for (const json::value& id : ListOf(tenant, "tokens")) {
    if (id.is_string())
      absl::StrAppend(&tokens, tokens.empty() ? "" : ", ", id.get_string().c_str());
  }
  const int64_t overage = Number(tenant, "overage");
  return absl::StrCat(
      "Name:         ", Text(tenant, "name"), "\nRevision:     ", Count(tenant, "revision"),
      "\nGuaranteed:   ", Budget(tenant, "guaranteed"), "\nLimit:        ", Budget(tenant, "limit"),
      "\nPolicy:       ", Policy(tenant), Caveat(tenant),
      "\nLeased:       ", Size(tenant, "leased"),
      overage > 0 ? absl::StrCat(" (", HumanBytes(overage), " above the limit, being given back)")
                  : "",
      "\nHeld:         ", Size(tenant, "held"), "\nCharged:      ", Size(tenant, "charged"),
      "\nUsed:         ", Size(tenant, "used"), "\nWanted:       ", Size(tenant, "wanted"),
      "\nSessions:     ", Count(tenant, "sessions"), "\nWorkers:      ", Count(tenant, "workers"),
      "\nRefusals:     ", Count(tenant, "refusals"),
      "\nCompactions:  ", Count(tenant, "compactions"), "\nRecovery:     mean ",
      Share(recovery, "mean"), ", min ", Share(recovery, "min"), "\nTokens:       ",
      tokens.empty() ? "none (kvpoolctl token create " + Text(tenant, "name") + ")" : tokens,
      "\nAgents:\n", RenderShares(ListOf(tenant, "agents"), "agent", "AGENT"), "Last reclaims:\n",
      RenderReclaims(ListOf(reclaims, "reclaims")));
}

std::string RenderAgent(const json::object& agent) {
  return absl::StrCat(
      "Name:         ", Text(agent, "name"), "\nState:        ", State(agent),
      "\nDevice:       ", Text(agent, "device"), "\nPool:         ", Size(agent, "pool"),
      "\nSlab:         ", Size(agent, "slab"), "\nLeased:       ", Size(agent, "leased"),
      "\nCharged:      ", Size(agent, "charged"), "\nFree:         ", Size(agent, "free"),
      "\nStuck:        ", Size(agent, "stuck"), "\nLast report:  ", ReportAge(agent),
      "\nTenants:\n", RenderShares(ListOf(agent, "tenants"), "tenant", "TENANT"));
}

std::string RenderTop(const json::object& tenants, const json::object& agents) {
  Table table({{"TENANT"},
               {"USED OF LIMIT"},
               {"USED", Align::kRight},
               {"CHARGED", Align::kRight},
               {"HELD", Align::kRight},
               {"LEASED", Align::kRight},
               {"LIMIT", Align::kRight},
               {"WANTED", Align::kRight},
               {"SESSIONS", Align::kRight},
               {"REFUSALS", Align::kRight},
               {"COMPACTIONS", Align::kRight},
               {"RECOVERY", Align::kRight}});
  for (const json::value& value : ListOf(tenants, "tenants")) {
    if (!value.is_object()) continue;
    const json::object& tenant = value.get_object();
    table.Add({Text(tenant, "name"),
               Bar(Number(tenant, "used"), Number(tenant, "limit"), kBarWidth),
               Size(tenant, "used"), Size(tenant, "charged"), Size(tenant, "held"),
               Size(tenant, "leased"), Size(tenant, "limit"), Size(tenant, "wanted"),
               Count(tenant, "sessions"), Count(tenant, "refusals"), Count(tenant, "compactions"),
               Share(ObjectOf(tenant, "recovery"), "mean")});
  }
  return absl::StrCat("capacity ", Size(tenants, "capacity"), ", epoch ", Count(tenants, "epoch"),
                      "\n\n", table.ToText(), "\n", RenderAgents(ListOf(agents, "agents")));
}

std::string RenderChanges(const json::object& answer) {
  std::string text;
  for (const json::value& value : ListOf(answer, "tenants")) {
    if (!value.is_object()) continue;
    const json::object& tenant = value.get_object();
    absl::StrAppend(&text, "tenant ", Text(tenant, "name"), " ", Text(tenant, "change"),
                    " (revision ", Number(tenant, "revision"), ")\n");
    for (const json::value& note : ListOf(tenant, "notes")) {
      if (note.is_string()) absl::StrAppend(&text, "  note: ", note.get_string().c_str(), "\n");
    }
  }
  return text;
}

}  // namespace kvpool

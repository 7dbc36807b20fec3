// Which columns, in which order.
//
// SPDX-License-Identifier: Apache-2.0
#include "client/cli/render.h"

#include <cstdio>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "client/cli/table.h"
#include "common/json_diff.h"
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

// A field's value as an operator writes it; "-" where there is none.
std::string FieldText(const std::string& field, const json::value& value) {
  const bool bytes = field == "guaranteed" || field == "limit" || field == "pool" ||
                     field == "slab" || field.starts_with("floors.");
  if (value.is_null()) return "-";
  if (value.is_int64() && bytes) return HumanBytes(value.get_int64());
  return ParameterText(value);
}

// "limit 12 MiB -> 16 MiB"
std::string ChangeText(const FieldChange& change) {
  return absl::StrCat(change.field, " ", FieldText(change.field, change.before), " -> ",
                      FieldText(change.field, change.after));
}

// [{"field", "before", "after"}], a line each.
std::string Fields(const json::array& fields) {
  std::string text;
  for (const json::value& value : fields) {
    if (!value.is_object()) continue;
    const json::object& field = value.get_object();
    const auto side = [&](const char* key) {
      const json::value* held = field.if_contains(key);
      return held == nullptr ? json::value() : *held;
    };
    absl::StrAppend(&text, "  ", ChangeText({Text(field, "field"), side("before"), side("after")}),
                    "\n");
  }
  return text;
}

// "+ 4 MiB", "- 2 MiB"
std::string SignedSize(int64_t bytes) {
  return (bytes < 0 ? "- " : "+ ") + HumanBytes(std::abs(bytes));
}

// What an operator should know about figures that such a policy works by.
std::string Caveat(const json::object& tenant) {
  const bool sampled = Text(ObjectOf(tenant, "policy"), "profile") == "sampled";
  return sampled ? "  (approximate: its profile is sampled)" : "";
}

bool Flag(const json::object& object, const char* key) {
  const json::value* value = object.if_contains(key);
  return value != nullptr && value->is_bool() && value->get_bool();
}

std::string State(const json::object& agent) {
  return std::string(Flag(agent, "connected") ? "connected" : "away") +
         (Flag(agent, "draining") ? ", draining" : "");
}

std::string TenantState(const json::object& tenant) {
  return Flag(tenant, "leaving") ? "leaving" : "active";
}

// "10 MiB", with what it comes to in whole slabs where that is less.
std::string Budget(const json::object& tenant, const char* key) {
  const json::object effective = ObjectOf(tenant, "effective");
  const bool rounded = effective.contains(key) && Number(effective, key) != Number(tenant, key);
  return Size(tenant, key) +
         (rounded ? " (effective " + Size(effective, key) + ": whole slabs)" : "");
}

// "gpu-0 4.0 GiB, gpu-1 2.0 GiB"
std::string Floors(const json::object& tenant) {
  std::string text;
  const json::object floors = ObjectOf(tenant, "floors");
  for (const auto& [agent, bytes] : floors) {
    absl::StrAppend(&text, text.empty() ? "" : ", ", std::string(agent), " ",
                    Size(floors, std::string(agent).c_str()));
  }
  return text.empty() ? "none" : text;
}

// "cold 2 s, running 15 s, then hold"
std::string GraceText(const json::object& tenant) {
  const json::object grace = ObjectOf(tenant, "grace");
  return absl::StrCat("cold ", Text(grace, "cold"), ", running ", Text(grace, "running"), ", then ",
                      Text(tenant, "over_deadline"));
}

// "no"; "12s"; "12s, past its grace".
std::string Over(const json::object& object) {
  const int64_t over = Number(object, "over_ms");
  const json::value* past = object.if_contains("past_deadline");
  const bool is_past = past != nullptr && past->is_bool() && past->get_bool();
  if (over == 0 && !is_past) return "no";
  return HumanAge(over) + (is_past ? ", past its grace" : "");
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
               {"OVERAGE", Align::kRight},
               {"WANTED", Align::kRight},
               {"SESSIONS", Align::kRight},
               {"WORKERS", Align::kRight},
               {"OVER LEASE"}});
  for (const json::value& value : shares) {
    if (!value.is_object()) continue;
    const json::object& share = value.get_object();
    table.Add({Text(share, key), Size(share, "used"), Size(share, "charged"), Size(share, "held"),
               Size(share, "leased"), Size(share, "ordered"), Size(share, "overage"),
               Size(share, "wanted"), Count(share, "sessions"), Count(share, "workers"),
               Over(share)});
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

std::string RenderDecisions(const json::array& decisions) {
  Table table({{"LAST", Align::kRight},
               {"FIRST", Align::kRight},
               {"COUNT", Align::kRight},
               {"AGENT"},
               {"FROM", Align::kRight},
               {"TO", Align::kRight},
               {"REASON"},
               {"WAITING"}});
  for (const json::value& value : decisions) {
    if (!value.is_object()) continue;
    const json::object& entry = value.get_object();
    std::string waiting;
    for (const json::value& name : ListOf(entry, "waiting")) {
      if (!name.is_string()) continue;
      absl::StrAppend(&waiting, waiting.empty() ? "" : ", ", name.get_string().c_str());
    }
    table.Add({HumanAge(Number(entry, "age_ms")), HumanAge(Number(entry, "first_age_ms")),
               Count(entry, "count"), Text(entry, "agent"), Size(entry, "from"), Size(entry, "to"),
               Text(entry, "reason"), waiting});
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
               {"STATE"},
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
    table.Add({Text(tenant, "name"), TenantState(tenant), Size(tenant, "guaranteed"),
               Size(tenant, "limit"), Size(tenant, "leased"), Size(tenant, "held"),
               Size(tenant, "charged"), Size(tenant, "used"), Size(tenant, "wanted"),
               Count(tenant, "sessions"), Count(tenant, "refusals"), Count(tenant, "compactions"),
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
      "Name:         ", Text(tenant, "name"), "\nState:        ", TenantState(tenant),
      "\nRevision:     ", Count(tenant, "revision"),
      "\nGuaranteed:   ", Budget(tenant, "guaranteed"), "\nLimit:        ", Budget(tenant, "limit"),
      "\nFloors:       ", Floors(tenant), "\nWeight:       ", Count(tenant, "weight"),
      "\nPriority:     ", Count(tenant, "priority"), "\nBorrowing:    ", Text(tenant, "borrowing"),
      "\nGrace:        ", GraceText(tenant), "\nPolicy:       ", Policy(tenant), Caveat(tenant),
      "\nLeased:       ", Size(tenant, "leased"),
      overage > 0 ? absl::StrCat(" (", HumanBytes(overage), " above the limit, being given back)")
                  : "",
      "\nOver lease:   ", Over(tenant), "\nHeld:         ", Size(tenant, "held"),
      "\nCharged:      ", Size(tenant, "charged"), "\nUsed:         ", Size(tenant, "used"),
      "\nWanted:       ", Size(tenant, "wanted"), "\nSessions:     ", Count(tenant, "sessions"),
      "\nWorkers:      ", Count(tenant, "workers"), "\nRefusals:     ", Count(tenant, "refusals"),
      "\nCompactions:  ", Count(tenant, "compactions"), "\nRecovery:     mean ",
      Share(recovery, "mean"), ", min ", Share(recovery, "min"), "\nTokens:       ",
      tokens.empty() ? "none (kvpoolctl token create " + Text(tenant, "name") + ")" : tokens,
      "\nAgents:\n", RenderShares(ListOf(tenant, "agents"), "agent", "AGENT"), "Last reclaims:\n",
      RenderReclaims(ListOf(reclaims, "reclaims")));
}

std::string RenderAgent(const json::object& agent) {
  return absl::StrCat(
      "Name:         ", Text(agent, "name"), "\nState:        ", State(agent),
      "\nRevision:     ", Count(agent, "revision"), "\nDevice:       ", Text(agent, "device"),
      "\nPool:         ", Size(agent, "pool"), "\nEffective:    ", Size(agent, "effective"),
      "\nOverage:      ", Size(agent, "overage"), "\nSlab:         ", Size(agent, "slab"),
      "\nLeased:       ", Size(agent, "leased"), "\nCharged:      ", Size(agent, "charged"),
      "\nFree:         ", Size(agent, "free"), "\nStuck:        ", Size(agent, "stuck"),
      "\nLast report:  ", ReportAge(agent), "\nTenants:\n",
      RenderShares(ListOf(agent, "tenants"), "tenant", "TENANT"));
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
               {"RECOVERY", Align::kRight},
               {"OVER LEASE"}});
  for (const json::value& value : ListOf(tenants, "tenants")) {
    if (!value.is_object()) continue;
    const json::object& tenant = value.get_object();
    table.Add({Text(tenant, "name"),
               Bar(Number(tenant, "used"), Number(tenant, "limit"), kBarWidth),
               Size(tenant, "used"), Size(tenant, "charged"), Size(tenant, "held"),
               Size(tenant, "leased"), Size(tenant, "limit"), Size(tenant, "wanted"),
               Count(tenant, "sessions"), Count(tenant, "refusals"), Count(tenant, "compactions"),
               Share(ObjectOf(tenant, "recovery"), "mean"), Over(tenant)});
  }
  return absl::StrCat("capacity ", Size(tenants, "capacity"), ", epoch ", Count(tenants, "epoch"),
                      "\n\n", table.ToText(), "\n", RenderAgents(ListOf(agents, "agents")));
}

std::string RenderOperators(const json::array& operators) {
  Table table({{"NAME"}, {"SCOPE"}, {"TOKEN"}});
  for (const json::value& value : operators) {
    if (!value.is_object()) continue;
    const json::object& each = value.get_object();
    table.Add({Text(each, "name"), Text(each, "scope"), Text(each, "id")});
  }
  return table.ToText();
}

std::string RenderAudit(const json::array& entries) {
  Table table({{"SEQ", Align::kRight},
               {"TIME"},
               {"ACTOR"},
               {"ACTION"},
               {"NAME"},
               {"REVISION", Align::kRight},
               {"CHANGE"}});
  for (const json::value& value : entries) {
    if (!value.is_object()) continue;
    const json::object& entry = value.get_object();
    const int64_t revision = Number(entry, "revision");
    std::string changes;
    for (const FieldChange& change :
         Differences(ObjectOf(entry, "before"), ObjectOf(entry, "after"))) {
      absl::StrAppend(&changes, changes.empty() ? "" : ", ", ChangeText(change));
    }
    table.Add({Count(entry, "seq"), Text(entry, "time"), Text(entry, "actor"),
               Text(entry, "action"), Text(entry, "name"),
               revision > 0 ? std::to_string(revision) : "-", changes});
  }
  return table.ToText();
}

std::string RenderToken(const json::object& answer) { return Text(answer, "token") + "\n"; }

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

std::string RenderRehearsal(const json::object& answer) {
  std::string text;
  for (const json::value& value : ListOf(answer, "changes")) {
    if (!value.is_object()) continue;
    const json::object& change = value.get_object();
    const int64_t revision = Number(change, "revision");
    absl::StrAppend(&text, Text(change, "action"), " ", Text(change, "name"),
                    revision > 0 ? absl::StrCat(" (revision ", revision, ")") : "", "\n",
                    Fields(ListOf(change, "fields")));
  }
  if (text.empty()) text = "nothing would change\n";
  Table table({{"TENANT"},
               {"LEASED", Align::kRight},
               {"AFTER", Align::kRight},
               {"DIFFERENCE", Align::kRight}});
  for (const json::value& value : ListOf(answer, "leases")) {
    if (!value.is_object()) continue;
    const json::object& lease = value.get_object();
    table.Add({Text(lease, "tenant"), Size(lease, "leased"), Size(lease, "after"),
               SignedSize(Number(lease, "after") - Number(lease, "leased"))});
  }
  const std::string leases =
      table.empty() ? "No lease would change.\n" : "Leases, at today's demand:\n" + table.ToText(2);
  return text + leases + "Nothing was changed: this was a dry run.\n";
}

std::string RenderDiff(const json::object& document) {
  std::string text;
  for (const json::value& value : ListOf(document, "tenants")) {
    if (!value.is_object()) continue;
    const json::object& tenant = value.get_object();
    absl::StrAppend(&text, Text(tenant, "change"), " tenant ", Text(tenant, "name"), "\n",
                    Fields(ListOf(tenant, "fields")));
  }
  return text;
}

std::string RenderLeaving(const json::object& tenant) {
  return absl::StrCat("tenant ", Text(tenant, "name"), " is leaving: ", Size(tenant, "leased"),
                      " are still leased to it, and it goes once they are back\n",
                      RenderShares(ListOf(tenant, "agents"), "agent", "AGENT"));
}

std::string RenderExplanation(const json::object& answer) {
  std::string text = absl::StrCat("Tenant ", Text(answer, "tenant"), " (revision ",
                                  Count(answer, "revision"), ")\n");
  for (const json::value& line : ListOf(answer, "why")) {
    if (line.is_string()) absl::StrAppend(&text, "  ", line.get_string().c_str(), "\n");
  }
  Table table({{"REQUESTED", Align::kRight},
               {"EFFECTIVE", Align::kRight},
               {"WANTED", Align::kRight},
               {"ORDERED", Align::kRight},
               {"LEASED", Align::kRight},
               {"HELD", Align::kRight},
               {"CHARGED", Align::kRight},
               {"USED", Align::kRight},
               {"OVERAGE", Align::kRight}});
  table.Add({Size(ObjectOf(answer, "requested"), "limit"),
             Size(ObjectOf(answer, "effective"), "limit"), Size(answer, "wanted"),
             Size(answer, "ordered"), Size(answer, "leased"), Size(answer, "held"),
             Size(answer, "charged"), Size(answer, "used"), Size(answer, "overage")});
  return absl::StrCat(text, table.ToText(2), "Last moves of its leases:\n",
                      RenderDecisions(ListOf(answer, "decisions")), "Last reclaims:\n",
                      RenderReclaims(ListOf(answer, "reclaims")));
}

}  // namespace kvpool

// Numbers, then sentences made from them.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/explain.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/quantity.h"
#include "manager/views.h"

namespace kvpool {
namespace {

struct Other {
  std::string tenant;
  Bytes ordered;
};

// An agent where a tenant is ordered less than it wants.
struct Shortfall {
  std::string agent;
  Bytes wanted, ordered;
  Bytes pool;
  bool draining = false, connected = false;
  std::vector<Other> others;  // who has leases there, most first
};

std::vector<Shortfall> ShortfallsOf(const Cluster& cluster, const Tenant& tenant) {
  std::vector<Shortfall> shortfalls;
  for (const auto& [name, agent] : cluster.agents()) {
    const auto use = agent.use.find(tenant.id);
    const int64_t wanted = use == agent.use.end() ? 0 : use->second.wanted_slabs;
    const int64_t ordered = cluster.ledger().Ordered(tenant.id, name);
    if (wanted <= ordered) continue;
    const Bytes slab = agent.info.slab_bytes;
    Shortfall here{.agent = name,
                   .wanted = slab * wanted,
                   .ordered = slab * ordered,
                   .pool = agent.info.pool_bytes,
                   .draining = agent.settings.draining,
                   .connected = agent.connected};
    for (const auto& [other_name, other] : cluster.tenants().by_name()) {
      const int64_t slabs = cluster.ledger().Ordered(other.id, name);
      if (other.id != tenant.id && slabs > 0) here.others.push_back({other_name, slab * slabs});
    }
    std::stable_sort(here.others.begin(), here.others.end(),
                     [](const Other& a, const Other& b) { return a.ordered > b.ordered; });
    shortfalls.push_back(std::move(here));
  }
  return shortfalls;
}

std::string SentenceOf(const Shortfall& here) {
  std::string text = absl::StrCat("At agent ", here.agent, " it wants ", FormatBytes(here.wanted),
                                  " and is given ", FormatBytes(here.ordered), ": ");
  if (!here.connected) return text + "the agent is away, so its leases stay as they are.";
  if (here.draining) return text + "the agent is draining (kvpoolctl undrain ends that).";
  if (here.others.empty()) {
    return text +
           absl::StrCat("its own budget, or the pool of ", FormatBytes(here.pool), ", ends there.");
  }
  std::string others;
  for (const Other& other : here.others) {
    absl::StrAppend(&others, others.empty() ? "" : ", ", other.tenant, " ",
                    FormatBytes(other.ordered));
  }
  return text +
         absl::StrCat("of the pool of ", FormatBytes(here.pool), " others have: ", others, ".");
}

std::vector<std::string> BudgetSentences(const Cluster& cluster, const Tenant& tenant,
                                         const TenantTotals& totals) {
  std::vector<std::string> why;
  if (tenant.leaving) {
    why.push_back(absl::StrCat("It is being deleted: it gets nothing new, and goes once the ",
                               FormatBytes(totals.leased), " leased to it are back."));
    return why;
  }
  const Bytes limit = Effective(cluster, tenant.spec.limit);
  why.push_back(
      absl::StrCat("It is guaranteed ", FormatBytes(Effective(cluster, tenant.spec.guaranteed)),
                   " and may hold ", FormatBytes(limit), "; it wants ", FormatBytes(totals.wanted),
                   " and has leases of ", FormatBytes(totals.ordered), "."));
  for (const std::string& note : BudgetNotes(cluster, tenant.spec)) why.push_back(note + ".");
  if (totals.wanted > limit) {
    why.push_back(absl::StrCat("It wants ", FormatBytes(totals.wanted - limit),
                               " more than its limit; only a higher limit or a policy that keeps"
                               " less helps."));
  } else if (totals.wanted <= totals.ordered) {
    why.push_back("It has all that it wants; what is above that is head-room, and goes first.");
  }
  return why;
}

std::vector<std::string> StateSentences(const TenantTotals& totals) {
  std::vector<std::string> why;
  if (totals.leased > totals.ordered) {
    why.push_back(absl::StrCat(FormatBytes(totals.leased - totals.ordered),
                               " more than it is given still count: they were taken back, and are"
                               " not returned yet."));
  }
  if (totals.charged > totals.ordered) {
    why.push_back(absl::StrCat("Its sessions may come to ",
                               FormatBytes(totals.charged - totals.ordered),
                               " more than it is given: no session is admitted until some end."));
  }
  if (totals.refusals > 0) {
    why.push_back(absl::StrCat(totals.refusals,
                               " times a session or a page was refused since its agents started."));
  }
  return why;
}

int64_t MillisSince(TimePoint time, TimePoint now) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(now - time).count();
}

std::string Listed(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) absl::StrAppend(&text, text.empty() ? "" : ", ", name);
  return text;
}

std::string ReasonText(const LeaseDecision& decision) {
  switch (decision.reason) {
    case MoveReason::kDemand:
      return "it wanted that";
    case MoveReason::kHeadRoom:
      return "head-room ahead of what it wanted";
    case MoveReason::kLimit:
      return "its leases were above its limit";
    case MoveReason::kDraining:
      return "the agent is draining";
    case MoveReason::kUnused:
      return "it did not want as much any more";
    case MoveReason::kOthers:
      break;
  }
  return "others had a better claim";
}

std::string DecisionSentence(const LeaseDecision& decision, Bytes slab, TimePoint now) {
  std::string text =
      absl::StrCat("Its lease at agent ", decision.agent, " went from ",
                   FormatBytes(slab * decision.from), " to ", FormatBytes(slab * decision.to), " ",
                   MillisSince(decision.last, now) / 1000, " s ago: ", ReasonText(decision));
  if (!decision.others.empty()) absl::StrAppend(&text, "; waiting: ", Listed(decision.others));
  return text + ".";
}

// For whom an agent took something: who waited when the lease there last came down before.
std::vector<std::string> MadeFor(const ReclaimEntry& entry,
                                 const std::deque<LeaseDecision>& decisions) {
  for (const LeaseDecision& decision : decisions) {
    const bool before = decision.agent == entry.agent && decision.first <= entry.last;
    if (before && decision.to < decision.from) return decision.others;
  }
  return {};
}

std::string ReclaimSentence(const ReclaimEntry& entry, const std::deque<LeaseDecision>& decisions,
                            TimePoint now) {
  std::string text =
      absl::StrCat("The last reclaim was ", entry.step, " (", entry.reason, ") at agent ",
                   entry.agent, " ", MillisSince(entry.last, now) / 1000,
                   " s ago: ", FormatBytes(entry.bytes), " of ", entry.sessions, " sessions");
  if (entry.reason != "lease-shrink") return text + ".";
  const std::vector<std::string> others = MadeFor(entry, decisions);
  return others.empty() ? text + "." : absl::StrCat(text, ", for ", Listed(others), ".");
}

boost::json::object ToJson(const LeaseDecision& decision, Bytes slab, TimePoint now) {
  boost::json::array others;
  for (const std::string& other : decision.others) others.emplace_back(other);
  return {{"agent", decision.agent},
          {"age_ms", MillisSince(decision.last, now)},
          {"first_age_ms", MillisSince(decision.first, now)},
          {"count", decision.count},
          {"from", (slab * decision.from).value()},
          {"to", (slab * decision.to).value()},
          {"reason", ToString(decision.reason)},
          {"waiting", std::move(others)}};
}

boost::json::object ToJson(const Shortfall& here) {
  boost::json::array others;
  for (const Other& other : here.others) {
    others.push_back({{"tenant", other.tenant}, {"ordered", other.ordered.value()}});
  }
  return {{"agent", here.agent},
          {"wanted", here.wanted.value()},
          {"ordered", here.ordered.value()},
          {"others", std::move(others)}};
}

}  // namespace

boost::json::object ExplainView(const Cluster& cluster, const Tenant& tenant, TimePoint now) {
  const TenantTotals totals = TotalsOf(cluster, tenant);
  const boost::json::object view = TenantView(cluster, tenant);
  boost::json::object json{{"tenant", tenant.spec.name}};
  for (const char* field : {"revision", "leaving", "requested", "effective", "wanted", "leased",
                            "ordered", "held", "charged", "used", "overage"}) {
    json[field] = view.at(field);
  }
  boost::json::array why, shortfalls;
  if (cluster.Learning(now)) {
    why.emplace_back("The manager has started and is learning: no lease changes yet.");
  }
  for (const std::string& line : BudgetSentences(cluster, tenant, totals)) why.emplace_back(line);
  for (const Shortfall& here : ShortfallsOf(cluster, tenant)) {
    why.emplace_back(SentenceOf(here));
    shortfalls.push_back(ToJson(here));
  }
  for (const std::string& line : StateSentences(totals)) why.emplace_back(line);
  const auto& reclaims = cluster.ReclaimsOf(tenant.id);
  const auto& decisions = cluster.DecisionsOf(tenant.id);
  const Bytes slab = cluster.SlabBytes();
  boost::json::array moves;
  for (const LeaseDecision& decision : decisions) moves.push_back(ToJson(decision, slab, now));
  if (!decisions.empty()) why.emplace_back(DecisionSentence(decisions.front(), slab, now));
  if (!reclaims.empty()) why.emplace_back(ReclaimSentence(reclaims.front(), decisions, now));
  json["decisions"] = std::move(moves);
  json["why"] = std::move(why);
  json["short"] = std::move(shortfalls);
  json["reclaims"] = ReclaimsView(cluster, tenant, now).at("reclaims");
  return json;
}

}  // namespace kvpool

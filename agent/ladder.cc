// See ladder.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/ladder.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace kvpool {
namespace {

PlaneSet UnionOf(const PlaneSet& a, const PlaneSet& b) {
  const auto counts = [](const PlaneSet& set) { return set.low_count_ring > 0 || set.last_hit; };
  return {.low_count_ring = std::max(a.low_count_ring, b.low_count_ring),
          .last_hit = a.last_hit || b.last_hit,
          .sum = a.sum || b.sum,
          .square_sum = a.square_sum || b.square_sum,
          .flags = a.flags || b.flags,
          .threshold = counts(b) ? b.threshold : a.threshold,
          .window_queries = std::max(a.window_queries, b.window_queries)};
}

// The stricter of two needs; kExact names more queries than kPrompt, kPrompt more than kSampled.
PolicyNeeds UnionOf(const PolicyNeeds& a, const PolicyNeeds& b) {
  const auto every = [](const PolicyNeeds& needs) {
    return needs.queries == QueryNeed::kNone || needs.queries == QueryNeed::kExact
               ? 0
               : needs.sample_every;
  };
  return {.planes = UnionOf(a.planes, b.planes),
          .queries = std::max(a.queries, b.queries,
                              [](QueryNeed x, QueryNeed y) {
                                const auto rank = [](QueryNeed need) {
                                  return need == QueryNeed::kExact ? 4 : static_cast<int>(need);
                                };
                                return rank(x) < rank(y);
                              }),
          .sample_every = std::max(1u, std::gcd(every(a), every(b))),
          .prompt_rows = std::max(a.prompt_rows, b.prompt_rows)};
}

Charge Most(const Charge& a, const Charge& b) {
  return {.pages = std::max(a.pages, b.pages), .overhead = std::max(a.overhead, b.overhead)};
}

}  // namespace

PolicyNeeds UnionOf(std::span<const PolicyNeeds> needs) {
  PolicyNeeds all{.queries = QueryNeed::kNone};
  for (const PolicyNeeds& one : needs) all = UnionOf(all, one);
  return all;
}

std::shared_ptr<const Ladder> MakeLadder(PolicyLadder said) {
  auto ladder = std::make_shared<Ladder>();
  std::vector<PolicyNeeds> needs;
  for (const PolicySpec& spec : said.rungs) {
    ladder->rungs.push_back({.spec = spec, .policy = MakePolicy(spec), .seal = SealRuleOf(spec)});
    needs.push_back(ladder->rungs.back().policy->Needs());
  }
  ladder->needs = UnionOf(needs);
  ladder->said = std::move(said);
  return ladder;
}

SessionLadder LadderFor(const Layout& layout, std::shared_ptr<const Ladder> ladder,
                        const SessionPlan& plan,
                        const std::function<bool(SealedFormat)>& can_have) {
  SessionLadder session{.ladder = std::move(ladder)};
  const Ladder& all = *session.ladder;
  SealRule seal;
  for (const Rung& rung : all.rungs) {
    if (can_have(rung.seal.format)) seal = rung.seal;
    session.rungs.push_back(
        {.seal = seal, .charge = PeakCharge(layout, *rung.policy, all.needs, seal, plan)});
    session.whole = Most(session.whole, WholeCharge(layout, all.needs, seal, plan));
  }
  for (size_t rung = session.rungs.size() - 1; rung > 0; --rung) {
    Charge& below = session.rungs[rung - 1].charge;
    below = Most(below, session.rungs[rung].charge);
  }
  session.whole = Most(session.whole, session.rungs.front().charge);
  return session;
}

}  // namespace kvpool

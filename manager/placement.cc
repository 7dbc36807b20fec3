// Filling in rounds, blocking flows, and levelling by splitting where a flow is cut.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/placement.h"

#include <algorithm>
#include <utility>

namespace kvpool {
namespace {

constexpr size_t kNone = IndexSet::kNone;

IndexSet All(size_t size) {
  IndexSet all(size);
  for (size_t i = 0; i < size; ++i) all.Insert(i);
  return all;
}

}  // namespace

Placement::Placement(std::vector<int64_t> free, size_t tenants)
    : free_(std::move(free)),
      gained_(tenants),
      pairs_(tenants * free_.size()),
      want_more_(tenants, IndexSet(free_.size())),
      holders_(free_.size(), IndexSet(tenants)),
      asked_(free_.size()),
      short_(tenants),
      excess_(tenants) {}

void Placement::SetWant(size_t t, size_t a, int64_t slabs) {
  pairs_[t * free_.size() + a].unmet = slabs;
  want_more_[t].Insert(a);
}

void Placement::Move(size_t t, size_t a, int64_t slabs) {
  Pair& pair = pairs_[t * free_.size() + a];
  pair.unmet -= slabs;
  pair.placed += slabs;
  if (pair.unmet == 0) want_more_[t].Erase(a);
  if (pair.unmet > 0 && slabs < 0) want_more_[t].Insert(a);
  if (pair.placed == 0) holders_[a].Erase(t);
  if (pair.placed > 0 && slabs > 0) holders_[a].Insert(t);
}

void Placement::Fill(const std::vector<Claim>& claims) {
  std::fill(gained_.begin(), gained_.end(), 0);
  bool moved = true;
  for (int round = 0; round < kRounds && moved; ++round) {
    for (size_t t = 0; t < claims.size(); ++t) Ask(t, claims[t].want - gained_[t]);
    moved = false;
    for (size_t a = 0; a < free_.size(); ++a) moved |= Serve(a, claims);
  }
}

// `amount`, or all that it could get where that is less, in proportion to what it could get at each
// agent; sums exactly.
void Placement::Ask(size_t t, int64_t amount) {
  if (amount == 0) return;
  const IndexSet& agents = want_more_[t];
  const auto possible = [&](size_t a) { return std::min(At(t, a).unmet, free_[a]); };
  int64_t sum = 0;
  for (size_t a = agents.Next(0); a != kNone; a = agents.Next(a + 1)) sum += possible(a);
  amount = std::min(amount, sum);
  int64_t possible_before = 0, asked_before = 0;
  for (size_t a = agents.Next(0); a != kNone; a = agents.Next(a + 1)) {
    if (free_[a] == 0) continue;
    possible_before += possible(a);
    const int64_t asked_now = amount * possible_before / sum;
    if (asked_now > asked_before) asked_[a].push_back({t, asked_now - asked_before});
    asked_before = asked_now;
  }
}

// Shares the agent's free slabs between those who ask; returns whether that moves anything.
bool Placement::Serve(size_t a, const std::vector<Claim>& claims) {
  std::vector<Asked>& asked = asked_[a];
  std::vector<Claim> here;
  for (const Asked& one : asked) here.push_back({one.slabs, claims[one.tenant].weight});
  const std::vector<int64_t> shares = ShareMaxMin(free_[a], here);
  int64_t granted = 0;
  for (size_t i = 0; i < shares.size(); ++i) {
    if (shares[i] == 0) continue;
    Move(asked[i].tenant, a, shares[i]);
    gained_[asked[i].tenant] += shares[i];
    granted += shares[i];
  }
  asked.clear();
  free_[a] -= granted;
  return granted > 0;
}

int64_t Placement::Unmet(size_t t) const {
  int64_t sum = 0;
  for (size_t a = want_more_[t].Next(0); a != kNone; a = want_more_[t].Next(a + 1)) {
    sum += At(t, a).unmet;
  }
  return sum;
}

// First as much as possible, for whom it may be. Then the fair shares of what a part has gained are
// its tenants' targets. Those that cannot be reached because the flow is cut show where: the
// tenants on the near side and their agents have all that they want of the far side and nothing
// that the far side could use, so each side is levelled by itself (Groenevelt 1991).
void Placement::Raise(const std::vector<Claim>& claims) {
  Fill(claims);
  std::vector<Claim> possible = claims;  // nobody can gain more than it wants
  for (size_t t = 0; t < claims.size(); ++t) {
    if (gained_[t] < claims[t].want) {
      possible[t].want = std::min(claims[t].want, gained_[t] + Unmet(t));
    }
    short_[t] = possible[t].want - gained_[t];
    excess_[t] = 0;
  }
  std::vector<Part> open{{All(claims.size()), All(free_.size())}};
  PushAll(open.back());
  if (!AnyShort(open.back())) return;
  while (!open.empty()) {
    Part part = std::move(open.back());
    open.pop_back();
    SetTargets(part, possible);
    PushAll(part);
    if (!AnyShort(part)) continue;
    open.push_back(SplitOffReached(part));
    open.push_back(std::move(part));
  }
}

void Placement::SetTargets(const Part& part, const std::vector<Claim>& claims) {
  std::vector<size_t> tenants;
  std::vector<Claim> here;
  int64_t gained = 0;
  for (size_t t = part.tenants.Next(0); t != kNone; t = part.tenants.Next(t + 1)) {
    tenants.push_back(t);
    here.push_back(claims[t]);
    gained += gained_[t];
  }
  const std::vector<int64_t> targets = ShareMaxMin(gained, here);
  for (size_t i = 0; i < targets.size(); ++i) {
    const size_t t = tenants[i];
    short_[t] = std::max<int64_t>(targets[i] - gained_[t], 0);
    excess_[t] = std::max<int64_t>(gained_[t] - targets[i], 0);
  }
}

bool Placement::AnyShort(const Part& part) const {
  for (size_t t = part.tenants.Next(0); t != kNone; t = part.tenants.Next(t + 1)) {
    if (short_[t] > 0) return true;
  }
  return false;
}

// Until no more can move. Then FindLayers has reached all that the short tenants can reach.
void Placement::PushAll(const Part& part) {
  while (FindLayers(part)) {
    const IndexSet& sources = layers_[0].tenants;
    for (size_t t = sources.Next(0); t != kNone; t = sources.Next(t + 1)) {
      const int64_t pushed = PushFromTenant(t, 0, short_[t]);
      short_[t] -= pushed;
      gained_[t] += pushed;
    }
  }
}

// Breadth first from the short tenants to the first layer where something can end.
bool Placement::FindLayers(const Part& part) {
  Part left = part;
  const Part none{IndexSet(gained_.size()), IndexSet(free_.size())};
  layers_.assign(1, none);
  for (size_t t = left.tenants.Next(0); t != kNone; t = left.tenants.Next(t + 1)) {
    if (short_[t] > 0) layers_[0].tenants.Insert(t);
  }
  left.tenants.Erase(layers_[0].tenants);
  bool ends = false;
  while (!ends && !layers_.back().tenants.Empty()) {
    Part& layer = layers_.back();
    Part next = none;
    for (size_t t = layer.tenants.Next(0); t != kNone; t = layer.tenants.Next(t + 1)) {
      const IndexSet& wanted = want_more_[t];
      for (size_t a = 0; (a = IndexSet::NextInBoth(wanted, left.agents, a)) != kNone; ++a) {
        left.agents.Erase(a);
        layer.agents.Insert(a);
        ends |= free_[a] > 0;
      }
    }
    for (size_t a = layer.agents.Next(0); a != kNone && !ends; a = layer.agents.Next(a + 1)) {
      const IndexSet& holders = holders_[a];
      for (size_t t = 0; (t = IndexSet::NextInBoth(holders, left.tenants, t)) != kNone; ++t) {
        left.tenants.Erase(t);
        next.tenants.Insert(t);
      }
    }
    for (size_t t = next.tenants.Next(0); t != kNone; t = next.tenants.Next(t + 1)) {
      ends |= excess_[t] > 0;
    }
    layers_.push_back(std::move(next));
  }
  return ends;
}

// What the last search reached becomes a part of its own.
Placement::Part Placement::SplitOffReached(Part& part) const {
  Part reached{IndexSet(gained_.size()), IndexSet(free_.size())};
  for (const Part& layer : layers_) {
    reached.tenants.Insert(layer.tenants);
    reached.agents.Insert(layer.agents);
  }
  part.tenants.Erase(reached.tenants);
  part.agents.Erase(reached.agents);
  return reached;
}

// Returns how much of the amount found an end. Who cannot pass all of it on is used up. A tenant
// with an excess gives it up: what it takes here it has just lost where the way came from.
int64_t Placement::PushFromTenant(size_t t, size_t layer, int64_t amount) {
  int64_t pushed = std::min(amount, excess_[t]);
  excess_[t] -= pushed;
  gained_[t] -= pushed;
  IndexSet& agents = layers_[layer].agents;
  for (size_t a = 0; pushed < amount; ++a) {
    a = IndexSet::NextInBoth(want_more_[t], agents, a);
    if (a == kNone) break;
    const int64_t asked = std::min(amount - pushed, At(t, a).unmet);
    const int64_t moved = PushFromAgent(a, layer, asked);
    if (moved > 0) Move(t, a, moved);
    if (moved < asked) agents.Erase(a);
    pushed += moved;
  }
  return pushed;
}

int64_t Placement::PushFromAgent(size_t a, size_t layer, int64_t amount) {
  int64_t pushed = std::min(amount, free_[a]);
  free_[a] -= pushed;
  if (layer + 1 == layers_.size()) return pushed;
  IndexSet& tenants = layers_[layer + 1].tenants;
  for (size_t t = 0; pushed < amount; ++t) {
    t = IndexSet::NextInBoth(holders_[a], tenants, t);
    if (t == kNone) break;
    const int64_t asked = std::min(amount - pushed, At(t, a).placed);
    const int64_t moved = PushFromTenant(t, layer + 1, asked);
    if (moved > 0) Move(t, a, -moved);
    if (moved < asked) tenants.Erase(t);
    pushed += moved;
  }
  return pushed;
}

}  // namespace kvpool

// The per-step view of a session: for every query in its turn, the probabilities that it gave to
// the keys that were there, in float64. What papers define their methods on.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/kernels/policy/policy_session.h"

namespace kvpool {

// What one query gave to the keys of one head.
struct StepMarks {
  uint32_t step = 0;                     // absolute: position + 1
  uint32_t keys = 0;                     // how many it saw
  std::vector<double> sum;               // [positions] over the group's query heads
  std::vector<double> squares, highest;  // [positions]
  bool Saw(uint32_t position) const { return position < step && seen[position]; }
  std::vector<bool> seen;  // [positions]
};

class StepOracle {
 public:
  explicit StepOracle(const PolicySession& session)
      : session_(session), marks_(session.geometry().planes()) {}

  // Every query so far, by head; those of the step the session has just been fed are added from
  // `queries` as Feed() returned them. Call after each Feed().
  void Feed(const std::vector<float>& queries, uint32_t tokens) {
    const Geometry& g = session_.geometry();
    const uint32_t end = session_.committed();
    const size_t floats = size_t{g.model_layers()} * g.query_heads * g.key_dim;
    for (uint32_t i = 0; i < tokens; ++i) {
      for (uint32_t plane = 0; plane < g.planes(); ++plane) {
        marks_[plane].push_back(Mark(queries.data() + i * floats, plane, end - tokens + i));
      }
    }
  }

  const std::vector<StepMarks>& marks(uint32_t plane) const { return marks_[plane]; }

 private:
  StepMarks Mark(const float* query, uint32_t plane, uint32_t position) const {
    const Geometry& g = session_.geometry();
    StepMarks marks{.step = position + 1};
    marks.seen.resize(position + 1);
    for (auto* numbers : {&marks.sum, &marks.squares, &marks.highest}) {
      numbers->resize(position + 1);
    }
    std::vector<uint32_t> seen;
    for (uint32_t p : session_.planes().positions(plane)) {
      if (p <= position) seen.push_back(p);
    }
    marks.keys = static_cast<uint32_t>(seen.size());
    for (uint32_t i = 0; i < g.group_size(); ++i) {
      const size_t head =
          size_t{plane / g.kv_heads} * g.query_heads + plane % g.kv_heads * g.group_size() + i;
      std::vector<double> alpha;
      double highest = -std::numeric_limits<double>::infinity(), total = 0;
      for (uint32_t p : seen) {
        double logit = 0;
        for (uint32_t d = 0; d < g.key_dim; ++d) {
          logit += double{query[head * g.key_dim + d]} * session_.key(plane, p)[d];
        }
        alpha.push_back(logit * session_.scale());
        highest = std::max(highest, alpha.back());
      }
      for (double& a : alpha) total += a = std::exp(a - highest);
      for (size_t k = 0; k < seen.size(); ++k) {
        const double a = alpha[k] / total;
        marks.seen[seen[k]] = true;
        marks.sum[seen[k]] += a;
        marks.squares[seen[k]] += a * a;
        marks.highest[seen[k]] = std::max(marks.highest[seen[k]], a);
      }
    }
    return marks;
  }

  const PolicySession& session_;
  std::vector<std::vector<StepMarks>> marks_;  // [planes][queries]
};

// Feeds a prompt in chunks and then single tokens until `tokens`, with an oracle beside it. Calls
// check(oracle) after each append in which the session was compacted, before the oracle has the
// queries of that append: what it knows then is what the compaction knew.
// `feed(tokens)` appends and returns the queries, as PolicySession::Feed does.
template <typename Feed, typename Check>
void LiveBeside(const PolicySession* session, const SessionPlan& plan, uint32_t tokens, Feed feed,
                Check check) {
  StepOracle oracle(*session);
  while (session->committed() < tokens) {
    const uint32_t now = session->committed(), before = session->compactions();
    const uint32_t prompt = plan.prompt_tokens - std::min(plan.prompt_tokens, now);
    const uint32_t step = prompt > 0 ? std::min(prompt, plan.chunk) : 1;
    const std::vector<float> queries = feed(step);
    if (session->compactions() != before) {
      check(oracle, now);
      if (testing::Test::HasFatalFailure()) return;
    }
    oracle.Feed(queries, step);
  }
}

template <typename Check>
void LiveBeside(PolicySession* session, const SessionPlan& plan, uint32_t tokens, Check check) {
  LiveBeside(
      session, plan, tokens, [session](uint32_t step) { return session->Feed(step); }, check);
}

// The positions of head `plane` that were there before position `end`, ascending.
inline std::vector<uint32_t> KeptBefore(const PolicySession& session, uint32_t plane,
                                        uint32_t end) {
  std::vector<uint32_t> kept;
  for (uint32_t position : session.planes().positions(plane)) {
    if (position < end) kept.push_back(position);
  }
  std::sort(kept.begin(), kept.end());
  return kept;
}

}  // namespace kvpool

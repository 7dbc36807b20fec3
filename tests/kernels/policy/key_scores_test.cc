// Policies that score keys, each against its paper's rule written down literally: what stays of a
// session that lives under it.
//
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <set>

#include "tests/kernels/policy/policy_session.h"
#include "tests/kernels/policy/still_session.h"

namespace kvpool {
namespace {

const Geometry kGeometry = TestGeometry(2, 4, 2, 16, 16, Dtype::kF32);
constexpr SessionPlan kPlan{.prompt_tokens = 100, .max_tokens = 400, .chunk = 40};

double Norm(const std::vector<float>& x) {
  double sum = 0;
  for (float v : x) sum += double{v} * v;
  return std::sqrt(sum);
}

// The score of each of a head's positions, ascending, as the paper has it.
using PaperScores = std::function<std::vector<double>(const PolicySession& session, uint32_t plane,
                                                      const std::vector<uint32_t>& positions)>;

// What the rule keeps of `positions`, ascending: the first `sinks` and last `recent` tokens, and
// the best others up to `budget`.
std::set<uint32_t> Kept(const std::vector<uint32_t>& positions, const std::vector<double>& scores,
                        uint32_t sinks, uint32_t recent, uint32_t budget) {
  std::set<uint32_t> kept;
  std::vector<std::pair<double, uint32_t>> rest;
  for (size_t i = 0; i < positions.size(); ++i) {
    if (positions[i] < sinks || i + recent >= positions.size()) {
      kept.insert(positions[i]);
    } else {
      rest.emplace_back(scores[i], positions[i]);
    }
  }
  std::sort(rest.rbegin(), rest.rend());
  for (size_t i = 0; i < rest.size() && kept.size() < budget; ++i) kept.insert(rest[i].second);
  return kept;
}

// Feeds a session and compares every compaction with the paper's. `queries` gets every query.
void ExpectPaper(const Policy& policy, const PaperScores& scores, uint32_t sinks, uint32_t recent,
                 uint32_t budget, std::vector<std::vector<float>>* queries = nullptr) {
  PolicySession session(kGeometry, policy, kPlan, budget);
  uint32_t seen = 0;
  const uint32_t floats = kGeometry.model_layers() * kGeometry.query_heads * kGeometry.key_dim;
  while (session.committed() < kPlan.max_tokens) {
    const uint32_t prompt =
        kPlan.prompt_tokens - std::min(kPlan.prompt_tokens, session.committed());
    const uint32_t tokens = prompt > 0 ? std::min(prompt, kPlan.chunk) : 1;
    // What is compacted before these tokens are there was decided with the queries until now.
    const std::vector<float> fed = session.Feed(tokens);
    if (session.compactions() > seen) {
      seen = session.compactions();
      for (uint32_t p = 0; p < kGeometry.planes(); ++p) {
        std::vector<uint32_t> before = session.before()[p];
        std::sort(before.begin(), before.end());
        const std::vector<uint32_t>& now = session.planes().positions(p);
        std::set<uint32_t> kept(now.begin(), now.end());
        for (uint32_t i = 0; i < tokens; ++i) kept.erase(session.committed() - 1 - i);
        ASSERT_EQ(kept, Kept(before, scores(session, p, before), sinks, recent, budget))
            << "compaction " << seen << " head " << p;
      }
    }
    if (queries == nullptr) continue;
    for (uint32_t i = 0; i < tokens; ++i) {
      queries->emplace_back(fed.begin() + i * floats, fed.begin() + (i + 1) * floats);
    }
  }
  EXPECT_GE(seen, 4u);
}

TEST(KeyScorePolicies, KNormKeepsTheLowestNorms) {
  const auto policy = Make("knorm", {{"budget", 60}, {"recent", 7}, {"slack", 30}});
  EXPECT_EQ(policy->NextCompactAt({}), 90u);
  EXPECT_EQ(policy->Needs().queries, QueryNeed::kSampled);
  EXPECT_EQ(policy->Needs().planes, PlaneSet{});
  ExpectPaper(
      *policy,
      [](const PolicySession& session, uint32_t plane, const std::vector<uint32_t>& positions) {
        std::vector<double> scores;
        for (uint32_t position : positions) scores.push_back(-Norm(session.key(plane, position)));
        return scores;
      },
      0, 7, 60);
}

TEST(KeyScorePolicies, KeyDiffKeepsWhatIsLeastLikeTheMean) {
  const auto policy = Make("keydiff", {{"budget", 60}, {"recent", 1}, {"slack", 30}});
  EXPECT_EQ(policy->NextCompactAt({}), 90u);
  EXPECT_EQ(policy->Needs().planes, PlaneSet{});
  ExpectPaper(
      *policy,
      [](const PolicySession& session, uint32_t plane, const std::vector<uint32_t>& positions) {
        std::vector<double> anchor(kGeometry.key_dim), scores;
        for (uint32_t position : positions) {
          const std::vector<float>& key = session.key(plane, position);
          for (size_t d = 0; d < key.size(); ++d) {
            anchor[d] += key[d] / Norm(key) / static_cast<double>(positions.size());
          }
        }
        for (uint32_t position : positions) {
          const std::vector<float>& key = session.key(plane, position);
          double dot = 0;
          for (size_t d = 0; d < key.size(); ++d) dot += key[d] * anchor[d];
          scores.push_back(-dot / Norm(key));
        }
        return scores;
      },
      0, 1, 60);
}

using Matrix = std::vector<std::vector<double>>;

// The rotation of one position as a matrix.
Matrix Rotation(uint32_t dim, double theta, double position) {
  Matrix r(dim, std::vector<double>(dim));
  for (uint32_t i = 0; i < dim / 2; ++i) {
    const double angle = position * std::pow(theta, -2.0 * i / dim);
    r[i][i] = r[i + dim / 2][i + dim / 2] = std::cos(angle);
    r[i][i + dim / 2] = -std::sin(angle);
    r[i + dim / 2][i] = std::sin(angle);
  }
  return r;
}

// The softmax of the paper's expected logits of one query head for every position from `sinks` on.
std::vector<double> ExpectedSoftmax(const Matrix& queries, const Matrix& future,
                                    const PolicySession& session, uint32_t plane,
                                    const std::vector<uint32_t>& positions, uint32_t sinks) {
  const uint32_t dim = kGeometry.key_dim;
  std::vector<double> logits, keyed(dim);
  double sum = 0;
  for (uint32_t position : positions) {
    const std::vector<float>& key = session.key(plane, position);
    for (uint32_t c = 0; c < dim; ++c) {  // R' k
      keyed[c] = 0;
      for (uint32_t r = 0; r < dim; ++r) keyed[c] += future[r][c] * key[r];
    }
    double mean = 0, square = 0;  // of q . R' k: E[x] + Var[x] / 2 is the paper's z
    for (const std::vector<double>& query : queries) {
      double x = 0;
      for (uint32_t d = 0; d < dim; ++d) x += query[d] * keyed[d] / std::sqrt(dim);
      mean += x / static_cast<double>(queries.size());
      square += x * x / static_cast<double>(queries.size());
    }
    logits.push_back(position < sinks ? 0 : std::exp(mean + (square - mean * mean) / 2));
    sum += logits.back();
  }
  for (double& x : logits) x /= sum;
  return logits;
}

TEST(KeyScorePolicies, ExpectedAttentionKeepsWhatFutureQueriesLookAt) {
  constexpr double kTheta = 500, kEpsilon = 0.01;
  constexpr uint32_t kSinks = 4, kHorizon = 20, kQueries = 24, kEvery = 3;
  const auto policy = Make("expected-attention", {{"budget", 60},
                                                  {"recent", 2},
                                                  {"slack", 30},
                                                  {"horizon", kHorizon},
                                                  {"epsilon", kEpsilon},
                                                  {"queries", kQueries},
                                                  {"every", kEvery},
                                                  {"rope_theta", kTheta}});
  EXPECT_EQ(policy->NextCompactAt({}), 90u);
  EXPECT_EQ(policy->Needs().sample_every, kEvery);
  EXPECT_EQ(policy->Needs().planes, PlaneSet{.window_queries = kQueries});
  const uint32_t dim = kGeometry.key_dim;
  std::vector<std::vector<float>> pushed;  // [position]
  ExpectPaper(
      *policy,
      [&](const PolicySession& session, uint32_t plane, const std::vector<uint32_t>& positions) {
        Matrix future(dim, std::vector<double>(dim));
        for (uint32_t t = 0; t < kHorizon; ++t) {
          const Matrix r = Rotation(dim, kTheta, static_cast<double>(pushed.size()) + t);
          for (uint32_t i = 0; i < dim * dim; ++i) {
            future[i / dim][i % dim] += r[i / dim][i % dim] / kHorizon;
          }
        }
        std::vector<double> scores(positions.size());
        for (uint32_t i = 0; i < 2; ++i) {  // the group
          const uint32_t reader = plane / 2 * 4 + plane % 2 * 2 + i;
          Matrix queries;
          for (size_t at = pushed.size(); at-- > kSinks && queries.size() < kQueries;) {
            if (at % kEvery != 0) continue;
            const Matrix back = Rotation(dim, kTheta, -static_cast<double>(at));
            queries.emplace_back(dim);
            for (uint32_t d = 0; d < dim * dim; ++d) {
              queries.back()[d / dim] +=
                  back[d / dim][d % dim] * pushed[at][reader * dim + d % dim];
            }
          }
          const std::vector<double> alpha =
              ExpectedSoftmax(queries, future, session, plane, positions, kSinks);
          for (size_t row = 0; row < scores.size(); ++row) scores[row] += alpha[row] / 2;
        }
        for (size_t row = 0; row < scores.size(); ++row) {
          scores[row] = (scores[row] + kEpsilon) * Norm(session.value(plane, positions[row]));
        }
        return scores;
      },
      kSinks, 2, 60, &pushed);
}

// The mean attention of the last `window` queries on every position but the newest `window`, each
// query by the largest logit of the group, and the maximum of `kernel` neighbours.
std::vector<double> PaperImportance(const std::vector<std::vector<float>>& pushed,
                                    const PolicySession& session, uint32_t plane,
                                    const std::vector<uint32_t>& positions, uint32_t window,
                                    uint32_t kernel) {
  const uint32_t dim = kGeometry.key_dim;
  const auto older = static_cast<int>(positions.size() - window);
  std::vector<double> mean(positions.size()), pooled(positions.size());
  for (size_t at = pushed.size() - window; at < pushed.size(); ++at) {
    std::vector<double> e(older);
    double sum = 0;
    for (int i = 0; i < older; ++i) {
      double logits[2] = {0, 0};
      for (uint32_t h = 0; h < 2; ++h) {
        const uint32_t reader = plane / 2 * 4 + plane % 2 * 2 + h;
        for (uint32_t d = 0; d < dim; ++d) {
          logits[h] += double{pushed[at][reader * dim + d]} * session.key(plane, positions[i])[d] /
                       std::sqrt(dim);
        }
      }
      sum += e[i] = std::exp(std::max(logits[0], logits[1]));
    }
    for (int i = 0; i < older; ++i) mean[i] += e[i] / sum / window;
  }
  for (int i = 0; i < older; ++i) {
    for (int k = i - static_cast<int>(kernel / 2); k <= i + static_cast<int>(kernel / 2); ++k) {
      if (k >= 0 && k < older) pooled[i] = std::max(pooled[i], mean[k]);
    }
  }
  return pooled;
}

std::vector<double> PaperRedundancy(const PolicySession& session, uint32_t plane,
                                    const std::vector<uint32_t>& positions, double threshold) {
  const size_t n = positions.size();
  std::vector<double> mean(n);
  for (size_t i = 0; i < n; ++i) {
    const std::vector<float>& a = session.key(plane, positions[i]);
    std::vector<double> cosines(n);
    size_t newest = n;
    for (size_t j = 0; j < n; ++j) {
      const std::vector<float>& b = session.key(plane, positions[j]);
      for (size_t d = 0; d < a.size() && i != j; ++d) {
        cosines[j] += double{a[d]} * b[d] / Norm(a) / Norm(b);
      }
      if (cosines[j] > threshold) newest = j;
    }
    if (newest < n) cosines[newest] = 0;
    for (size_t j = 0; j < n; ++j) mean[j] += cosines[j] / static_cast<double>(n);
  }
  double sum = 0;
  for (double& x : mean) sum += x = std::exp(x);
  for (double& x : mean) x /= sum;
  return mean;
}

TEST(KeyScorePolicies, RkvKeepsWhatMattersAndIsNotSaidAlready) {
  for (double lambda : {0.1, 0.9}) {
    const auto policy = Make("rkv", {{"budget", 60},
                                     {"buffer", 30},
                                     {"window", 6},
                                     {"kernel", 3},
                                     {"lambda", lambda},
                                     {"threshold", 0.3}});
    EXPECT_EQ(policy->NextCompactAt({}), 90u);
    EXPECT_EQ(policy->Needs().queries, QueryNeed::kExact);
    EXPECT_EQ(policy->Needs().prompt_rows, 6u);
    std::vector<std::vector<float>> pushed;  // [position]
    ExpectPaper(
        *policy,
        [&](const PolicySession& session, uint32_t plane, const std::vector<uint32_t>& positions) {
          std::vector<double> scores = PaperImportance(pushed, session, plane, positions, 6, 3);
          const std::vector<double> redundancy = PaperRedundancy(session, plane, positions, 0.3);
          for (size_t i = 0; i < scores.size(); ++i) {
            scores[i] = lambda * scores[i] - (1 - lambda) * redundancy[i];
          }
          return scores;
        },
        0, 6, 60, &pushed);
  }
}

}  // namespace
}  // namespace kvpool

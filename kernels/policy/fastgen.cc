// See fastgen.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/policy/fastgen.h"

#include <algorithm>
#include <limits>

#include "kernels/token_flags.h"

namespace kvpool {
namespace {

bool IsFull(uint8_t head_class) { return head_class >= static_cast<uint8_t>(HeadClass::kFull); }

bool AllFull(const std::vector<uint8_t>& classes) {
  return std::all_of(classes.begin(), classes.end(), IsFull);
}

}  // namespace

FastGenPolicy::FastGenPolicy(const PolicySpec& spec)
    : profile_{.recovery = spec.Number("recovery"),
               .local = spec.Number("local"),
               .frequent = spec.Number("frequent"),
               .group = spec.Choice("group") == "min" ? ProfileRule::Group::kMin
                                                      : ProfileRule::Group::kMean,
               .sample_every = spec.Choice("profile") == "exact" ? 1 : kSampledProfile},
      slack_(spec.Count("slack")) {}

PolicyNeeds FastGenPolicy::Needs() const {
  return {.planes = {.sum = true, .flags = true},
          .queries = QueryNeed::kExact,
          .prompt_rows = kDrainQueries,
          .profile = profile_};
}

std::optional<uint32_t> FastGenPolicy::NextCompactAt(const PolicyState& state) const {
  if (!state.head_classes.empty()) {
    if (AllFull(state.head_classes)) return std::nullopt;
    return state.length + slack_;
  }
  // At the prompt's end there is a profile; if there is none then, there never will be.
  if (state.step < state.plan.prompt_tokens) return state.plan.prompt_tokens;
  return std::nullopt;
}

HeadRule FastGenPolicy::Rule(HeadClass head_class, uint32_t length) const {
  if (head_class >= HeadClass::kFull) return {.total = std::numeric_limits<uint32_t>::max()};
  HeadRule rule{.flags = kSpecialToken};
  if (head_class >= HeadClass::kPunctuation) rule.flags |= kPunctuationToken;
  if (head_class >= HeadClass::kFrequent) rule.top = ShareOf(profile_.frequent, length);
  if (head_class >= HeadClass::kLocal) rule.recent = LocalKeys(profile_.local, length);
  return rule;
}

std::optional<Selection> FastGenPolicy::Compact(const PolicyState& state) const {
  if (AllFull(state.head_classes)) return std::nullopt;  // also before there are any
  Selection selection{.score = {.kind = RowScore::Kind::kSum}};
  uint64_t expected = 0;
  for (const uint8_t head_class : state.head_classes) {
    const HeadRule& rule =
        selection.heads.emplace_back(Rule(static_cast<HeadClass>(head_class), state.step));
    expected += std::min<uint64_t>(state.length, uint64_t{rule.total} + rule.top + rule.recent);
  }
  selection.expected = static_cast<uint32_t>(expected / state.head_classes.size());
  return selection;
}

}  // namespace kvpool

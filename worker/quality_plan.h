// What a measurement of quality feeds: windows of prose with facts planted in them. A window is a
// prompt, prose whose every token is scored, and at the end a question about each fact.
//
// Knows text and token ids, neither models nor caches. Pure; values, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace kvpool {

// Token ids of a piece of text that goes on where another one ended.
using Encoder = std::function<std::vector<int32_t>(const std::string&)>;

struct QualityPlan {
  uint32_t context = 1536;  // tokens of a window, BOS and questions included
  uint32_t prompt = 768;    // of these, fed first, facts included; not scored
  uint32_t windows = 12;
  uint32_t facts = 4;  // a window, at most kMaxFacts
  uint64_t seed = 1;   // of the facts and their places
};

inline constexpr uint32_t kMaxFacts = 24;  // as many as there are names

// Tokens whose prediction is looked at.
struct TokenRange {
  uint32_t first = 0;
  uint32_t count = 0;
  uint32_t end() const { return first + count; }
};

struct QualityWindow {
  std::vector<int32_t> tokens;      // `context` of them, BOS first
  uint32_t prompt_tokens = 0;       // every fact lies below
  TokenRange prose;                 // scored: what follows the prompt's successor
  std::vector<TokenRange> answers;  // of each question, in the order in which the facts were told
};

// The text in sentences, nothing lost: white space goes with the sentence that follows it. A stop
// after a word of up to three letters ends none ("Mr.").
std::vector<std::string> Sentences(const std::string& text);

// Windows from each text in turn, at places spread evenly over it; a text is a ring, so windows of
// a short one overlap. A fact reads "The secret THING of NAME is DDDDD." and stands between two
// sentences of the prompt's second half, one in each of `facts` equal parts of it; names differ
// within a window. A question repeats it up to "is"; its answer and the next question follow.
// InvalidArgument: no text, a text with too few tokens for a window, or a window too short for its
// facts.
absl::StatusOr<std::vector<QualityWindow>> PlanQualityWindows(const std::vector<std::string>& texts,
                                                              const Encoder& encode, int32_t bos,
                                                              const QualityPlan& plan);

}  // namespace kvpool

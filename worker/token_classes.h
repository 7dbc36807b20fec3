// Which tokens of a vocabulary are special and which are punctuation, as policies want to know it
// (kernels/token_flags.h). Special: the tokenizer's control pieces (BOS, EOS, and marks like
// [INST] where a tokenizer has them as one). Punctuation: pieces that are nothing but ".", ":" or
// "?", with or without a space before, as in FastGen (arXiv 2310.01801, section 3.2).
//
// Pure; any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "worker/tokenizer.h"

namespace kvpool {

// A byte of flags for each id below `vocab`; ids that are no pieces have none.
std::vector<uint8_t> TokenClasses(const Tokenizer& tokenizer, uint32_t vocab);

}  // namespace kvpool

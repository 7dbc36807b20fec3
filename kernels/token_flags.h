// What a worker says about a token, one byte: bits that policies may keep rows by. The kernels know
// no tokenizer; who sets a bit decides what it means (worker/token_classes.h does, for ours).
//
// Constants, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace kvpool {

inline constexpr uint8_t kSpecialToken = 1;      // of the format: BOS, EOS, [INST], ...
inline constexpr uint8_t kPunctuationToken = 2;  // ends a sentence or a clause
// What a byte from outside is cut down to.
inline constexpr uint8_t kTokenFlags = kSpecialToken | kPunctuationToken;

}  // namespace kvpool

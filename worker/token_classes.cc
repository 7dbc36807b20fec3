// See token_classes.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "worker/token_classes.h"

#include <algorithm>
#include <string>

#include "kernels/token_flags.h"

namespace kvpool {

std::vector<uint8_t> TokenClasses(const Tokenizer& tokenizer, uint32_t vocab) {
  static const std::string kSpace = "\xe2\x96\x81";  // U+2581, which stands for a space
  std::vector<uint8_t> flags(vocab);
  const uint32_t pieces = std::min(vocab, tokenizer.pieces());
  for (uint32_t id = 0; id < pieces; ++id) {
    std::string text = tokenizer.Piece(static_cast<int32_t>(id));
    if (text.starts_with(kSpace)) text.erase(0, kSpace.size());
    if (tokenizer.IsControl(static_cast<int32_t>(id))) {
      flags[id] = kSpecialToken;
    } else if (!text.empty() && text.find_first_not_of(".:?") == std::string::npos) {
      flags[id] = kPunctuationToken;
    }
  }
  return flags;
}

}  // namespace kvpool

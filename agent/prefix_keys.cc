// HMAC-SHA256 with lengths before what they measure, cut to 16 bytes. See prefix_keys.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/prefix_keys.h"

#include <openssl/hmac.h>
#include <openssl/rand.h>

#include <algorithm>
#include <memory>

namespace kvpool {
namespace {

using Message = std::vector<uint8_t>;

void AppendWord(uint32_t word, Message* to) {
  for (int shift = 0; shift < 32; shift += 8) to->push_back(static_cast<uint8_t>(word >> shift));
}

PageKey Mac(const PrefixSecret& secret, const Message& message) {
  std::array<uint8_t, 32> mac;
  HMAC(EVP_sha256(), secret.data(), static_cast<int>(secret.size()), message.data(), message.size(),
       mac.data(), nullptr);
  PageKey key;
  std::copy_n(mac.begin(), key.size(), key.begin());
  return key;
}

}  // namespace

absl::StatusOr<PrefixSecret> DrawPrefixSecret() {
  PrefixSecret secret;
  if (RAND_bytes(secret.data(), static_cast<int>(secret.size())) == 1) return secret;
  return absl::InternalError("the system's random source failed");
}

PageKey RootKey(const PrefixSecret& secret, std::string_view model) {
  Message message;
  AppendWord(static_cast<uint32_t>(model.size()), &message);
  message.insert(message.end(), model.begin(), model.end());
  return Mac(secret, message);
}

std::vector<PageKey> PageKeys(const PrefixSecret& secret, const PageKey& before,
                              std::span<const uint32_t> tokens) {
  std::vector<PageKey> keys;
  keys.reserve(tokens.size() / kPageTokens);
  PageKey last = before;
  Message message;
  for (; tokens.size() >= kPageTokens; tokens = tokens.subspan(kPageTokens)) {
    message.clear();
    AppendWord(static_cast<uint32_t>(last.size()), &message);
    message.insert(message.end(), last.begin(), last.end());
    AppendWord(kPageTokens, &message);
    for (const uint32_t token : tokens.first(kPageTokens)) AppendWord(token, &message);
    last = Mac(secret, message);
    keys.push_back(last);
  }
  return keys;
}

}  // namespace kvpool

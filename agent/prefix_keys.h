// Names of pages by what they hold: the key of a page is an HMAC over the key of the page before it
// and its own 16 tokens, so that equal keys mean equal tokens from the beginning on. The secret is
// drawn for one tenant's pages of one layout at one agent and never leaves it: nobody can make a
// key, or tell from one what a tenant's prompts are. Two secrets never give the same keys.
//
// Hashing a long prompt takes a while: any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/ids.h"

namespace kvpool {

using PageKey = std::array<uint8_t, 16>;
using PrefixSecret = std::array<uint8_t, 32>;

// Internal: the system's random source failed.
absl::StatusOr<PrefixSecret> DrawPrefixSecret();

// What the first page's key hangs on. `model` names all that keys and values depend on besides the
// tokens: the weights, an adapter.
PageKey RootKey(const PrefixSecret& secret, std::string_view model);

// Keys of the whole pages of `tokens`, which follow the page of key `before` (or the root).
std::vector<PageKey> PageKeys(const PrefixSecret& secret, const PageKey& before,
                              std::span<const uint32_t> tokens);

}  // namespace kvpool

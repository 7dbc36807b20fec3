// The file of prompts that a worker is fed: plain lines, or JSON lines.
//
// Knows text only; tokens are made by the caller. Values, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace kvpool {

// One prompt with everything that its line, or else the defaults, say.
struct Prompt {
  std::string text;
  std::string tenant;
  uint32_t max_tokens = 64;  // to generate
  float temperature = 0;
  uint64_t seed = 0;
};

inline constexpr uint32_t kMaxNewTokens = 1 << 20;
inline constexpr size_t kMaxPrompts = 1 << 20;

// A line that begins with '{' is an object {prompt, tenant, max_tokens, temperature, seed}, of
// which only `prompt` is needed; any other line is a prompt, in which \n, \t and \\ are escapes.
// Empty lines do not count. InvalidArgument names the line and what is wrong with it.
absl::StatusOr<std::vector<Prompt>> ParsePrompts(const std::string& text, const Prompt& defaults);

}  // namespace kvpool

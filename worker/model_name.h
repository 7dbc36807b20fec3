// What names a model's keys and values to an agent: workers whose checkpoint and way of feeding
// prompts are the same may share them.
//
// Start-up code; any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "worker/llama.h"

namespace kvpool {

// A hash of the checkpoint's config.json and of its weight files' names, sizes and times of change.
// Empty, so that nothing is shared, where keys of a prompt depend on how it is cut into pieces
// (LCKV, iterated). NotFound: no such directory.
absl::StatusOr<std::string> ModelName(const std::string& directory, const LlamaConfig& config,
                                      PromptMode mode);

}  // namespace kvpool

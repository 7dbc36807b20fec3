// The file that an agent leaves for its next start: what it may serve before it has heard from a
// manager. Written whole, beside the old one, and swapped in: after a crash there is the old one or
// the new one. What is read is checked: a file that is damaged, of a newer version or of another
// agent is refused, never taken for an empty one.
//
// Functions on values and a path; any thread, one at a time for a path. They wait for the disk.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/tenant_book.h"
#include "common/units.h"

namespace kvpool {

// Who leaves the file: only the same agent with slabs of the same size goes on with it.
struct StateOwner {
  std::string agent;
  Bytes slab_bytes;
};

// The file's content.
std::string EncodeState(const StateOwner& owner, const KeptOrders& orders);

// InvalidArgument says what is wrong with the content. nullopt: the slabs had another size then, so
// nothing is kept.
absl::StatusOr<std::optional<KeptOrders>> DecodeState(const std::string& content,
                                                      const StateOwner& owner);

// nullopt: there is no such file, or none for slabs of this size. Errors name the file and what to
// do.
absl::StatusOr<std::optional<KeptOrders>> ReadState(const std::string& path,
                                                    const StateOwner& owner);

// Only the owner may read it: it holds hashes of tokens. Durable once it has returned.
absl::Status WriteState(const std::string& path, const std::string& content);

}  // namespace kvpool

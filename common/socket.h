// Opens listening sockets, with errors that say what to do. Any thread; touches no event loop.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "absl/status/statusor.h"
#include "common/address.h"

namespace kvpool {

// A listening socket, close-on-exec and non-blocking; the caller owns the descriptor. A unix socket
// gets mode 0660 in a folder that must exist; a socket file that nobody listens on is replaced. A
// host must be a numeric address or "localhost"; port 0 lets the system pick.
absl::StatusOr<int> ListenOn(const Address& address);

}  // namespace kvpool

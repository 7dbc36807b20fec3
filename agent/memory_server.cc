// See memory_server.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/memory_server.h"

#include <fcntl.h>
#include <kj/debug.h>

namespace kvpool {

MemoryServer::MemoryServer(int fd) {
  int copy;
  KJ_SYSCALL(copy = fcntl(fd, F_DUPFD_CLOEXEC, 0));
  fd_ = kj::AutoCloseFd(copy);
}

}  // namespace kvpool

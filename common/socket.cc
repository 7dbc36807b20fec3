// bind and listen for both kinds of address.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/socket.h"

#include <netdb.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"

namespace kvpool {
namespace {

constexpr int kSocketFlags = SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK;
constexpr int kBacklog = 128;
constexpr mode_t kSocketMode = 0660;

// A descriptor that closes itself unless it is released.
class Socket {
 public:
  explicit Socket(int family) : fd_(socket(family, kSocketFlags, 0)) {}
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  int fd() const { return fd_; }
  int Release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

absl::Status Failed(const Address& address, const char* advice = "") {
  return absl::ErrnoToStatus(errno, absl::StrCat("cannot listen on ", ToString(address), advice));
}

// Removes the file at `path` if it is a socket that nobody listens on.
absl::Status RemoveStale(const Address& address, const sockaddr_un& name) {
  struct stat info;
  if (lstat(name.sun_path, &info) != 0) return Failed(address);
  if (!S_ISSOCK(info.st_mode)) {
    return absl::AlreadyExistsError(absl::StrCat("cannot listen on ", ToString(address),
                                                 ": the file is there and is not a socket"));
  }
  const Socket probe(AF_UNIX);
  if (connect(probe.fd(), reinterpret_cast<const sockaddr*>(&name), sizeof(name)) == 0 ||
      errno != ECONNREFUSED) {
    return absl::AlreadyExistsError(
        absl::StrCat("cannot listen on ", ToString(address),
                     ": another process listens there; stop it or choose another path"));
  }
  if (unlink(name.sun_path) != 0) return Failed(address);
  return absl::OkStatus();
}

absl::StatusOr<int> ListenOnPath(const Address& address, const std::string& path) {
  sockaddr_un name{.sun_family = AF_UNIX};
  if (path.size() >= sizeof(name.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat("socket path is too long: ", path));
  }
  std::memcpy(name.sun_path, path.data(), path.size());
  const auto* raw = reinterpret_cast<const sockaddr*>(&name);
  Socket listener(AF_UNIX);
  if (listener.fd() < 0) return Failed(address);
  if (bind(listener.fd(), raw, sizeof(name)) != 0) {
    if (errno != EADDRINUSE) return Failed(address, " (its folder must exist and be writable)");
    if (absl::Status status = RemoveStale(address, name); !status.ok()) return status;
    if (bind(listener.fd(), raw, sizeof(name)) != 0) return Failed(address);
  }
  // Nobody can connect before listen, so the mode is never wider than this.
  if (chmod(path.c_str(), kSocketMode) != 0 || listen(listener.fd(), kBacklog) != 0) {
    return Failed(address);
  }
  return listener.Release();
}

absl::StatusOr<int> ListenOnPort(const Address& address, const HostPort& host_port) {
  addrinfo hints{.ai_flags = AI_PASSIVE | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM};
  const bool is_name = host_port.host == "localhost";
  if (!is_name) hints.ai_flags |= AI_NUMERICHOST;
  const std::string host = is_name ? "127.0.0.1" : host_port.host;
  addrinfo* found = nullptr;
  const std::string port = std::to_string(host_port.port);
  if (const int error = getaddrinfo(host.c_str(), port.c_str(), &hints, &found); error != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot listen on ", ToString(address), ": ", gai_strerror(error),
                     "; give a numeric address of this machine, such as 127.0.0.1 or 0.0.0.0"));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owned(found, &freeaddrinfo);
  Socket listener(found->ai_family);
  if (listener.fd() < 0) return Failed(address);
  const int on = 1;
  setsockopt(listener.fd(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (bind(listener.fd(), found->ai_addr, found->ai_addrlen) != 0 ||
      listen(listener.fd(), kBacklog) != 0) {
    if (errno == EADDRINUSE) {
      return absl::AlreadyExistsError(
          absl::StrCat("cannot listen on ", ToString(address),
                       ": the port is taken by another process; stop it or choose another port"));
    }
    return Failed(address);
  }
  return listener.Release();
}

}  // namespace

absl::StatusOr<int> ListenOn(const Address& address) {
  if (const auto* local = std::get_if<UnixPath>(&address)) {
    return ListenOnPath(address, local->path);
  }
  return ListenOnPort(address, std::get<HostPort>(address));
}

}  // namespace kvpool

// Where a socket listens or connects: a unix socket path or host:port, parsed from configuration.
// Resolves nothing. Values, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"

namespace kvpool {

struct HostPort {
  std::string host;
  uint16_t port = 0;  // 0 when listening: the system picks one
  bool operator==(const HostPort&) const = default;
};

struct UnixPath {
  std::string path;
  bool operator==(const UnixPath&) const = default;
};

using Address = std::variant<UnixPath, HostPort>;

// "127.0.0.1:8080", "localhost:8080", "[::1]:8080".
absl::StatusOr<HostPort> ParseHostPort(const std::string& text);

// Several with commas between them, at least one: "10.0.0.1:7600,10.0.0.2:7600".
absl::StatusOr<std::vector<HostPort>> ParseHostPorts(const std::string& text);

// Whether only this machine reaches it: 127.0.0.0/8, ::1 or "localhost".
bool IsLoopback(const HostPort& address);
// Whether the host is an IP address rather than a name.
bool IsNumeric(const HostPort& address);

enum class Scheme : uint8_t { kHttp, kHttps };

struct HttpServers {
  Scheme scheme = Scheme::kHttp;
  std::vector<HostPort> addresses;  // at least one
};

// As ParseHostPorts; or each with https:// (http://) in front, all alike.
absl::StatusOr<HttpServers> ParseHttpServers(const std::string& text);

// "/run/kvpool/agent.sock" or what ParseHostPort takes.
absl::StatusOr<Address> ParseAddress(const std::string& text);

std::string ToString(const HostPort& address);
std::string ToString(const Address& address);

}  // namespace kvpool

// Parsing and printing of socket addresses.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/un.h>

#include <algorithm>
#include <charconv>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"

namespace kvpool {
namespace {

absl::Status BadHostPort(const std::string& text) {
  return absl::InvalidArgumentError(absl::StrCat(
      "\"", text, "\" is not host:port, such as 127.0.0.1:7600 or [::1]:7600 (port 0..65535)"));
}

}  // namespace

absl::StatusOr<HostPort> ParseHostPort(const std::string& text) {
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos || colon == 0) return BadHostPort(text);
  HostPort address{.host = text.substr(0, colon)};
  const char* const end = text.data() + text.size();
  const auto [parsed, error] = std::from_chars(text.data() + colon + 1, end, address.port);
  if (error != std::errc() || parsed != end) return BadHostPort(text);
  if (address.host.front() == '[') {
    if (address.host.size() < 4 || address.host.back() != ']') return BadHostPort(text);
    address.host = address.host.substr(1, address.host.size() - 2);
  } else if (address.host.find(':') != std::string::npos) {
    return BadHostPort(text);
  }
  return address;
}

absl::StatusOr<std::vector<HostPort>> ParseHostPorts(const std::string& text) {
  std::vector<HostPort> addresses;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    absl::StatusOr<HostPort> address = ParseHostPort(text.substr(begin, end - begin));
    if (!address.ok()) return address.status();
    addresses.push_back(*std::move(address));
    begin = end + 1;
  }
  return addresses;
}

bool IsNumeric(const HostPort& address) {
  in6_addr ignored;
  return inet_pton(AF_INET, address.host.c_str(), &ignored) == 1 ||
         inet_pton(AF_INET6, address.host.c_str(), &ignored) == 1;
}

bool IsLoopback(const HostPort& address) {
  in_addr v4;
  if (inet_pton(AF_INET, address.host.c_str(), &v4) == 1) return ntohl(v4.s_addr) >> 24 == 127;
  in6_addr v6;
  if (inet_pton(AF_INET6, address.host.c_str(), &v6) == 1) return IN6_IS_ADDR_LOOPBACK(&v6);
  return address.host == "localhost";
}

absl::StatusOr<HttpServers> ParseHttpServers(const std::string& text) {
  constexpr std::string_view kHttp = "http://", kHttps = "https://";
  HttpServers servers;
  if (text.starts_with(kHttps)) servers.scheme = Scheme::kHttps;
  std::string bare;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    std::string_view server = std::string_view(text).substr(begin, end - begin);
    const bool secure = server.starts_with(kHttps);
    if (secure != (servers.scheme == Scheme::kHttps)) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", text, "\" mixes https:// with others; write https:// before each"));
    }
    if (secure || server.starts_with(kHttp)) {
      server.remove_prefix(secure ? kHttps.size() : kHttp.size());
    }
    bare.append(bare.empty() ? "" : ",").append(server);
    begin = end + 1;
  }
  absl::StatusOr<std::vector<HostPort>> addresses = ParseHostPorts(bare);
  if (!addresses.ok()) return addresses.status();
  servers.addresses = *std::move(addresses);
  return servers;
}

absl::StatusOr<Address> ParseAddress(const std::string& text) {
  if (text.empty() || text.front() != '/') return ParseHostPort(text);
  constexpr size_t kLongest = sizeof(sockaddr_un::sun_path) - 1;
  if (text.size() > kLongest) {
    return absl::InvalidArgumentError(absl::StrCat("socket path \"", text, "\" is ", text.size(),
                                                   " bytes long; at most ", kLongest,
                                                   " are allowed"));
  }
  return UnixPath{text};
}

std::string ToString(const HostPort& address) {
  const bool v6 = address.host.find(':') != std::string::npos;
  return absl::StrCat(v6 ? "[" : "", address.host, v6 ? "]:" : ":", address.port);
}

std::string ToString(const Address& address) {
  if (const auto* path = std::get_if<UnixPath>(&address)) return path->path;
  return ToString(std::get<HostPort>(address));
}

}  // namespace kvpool

// A small HTTP/1.1 server for operators: API, health, metrics. One thread of its own, which calls
// the handler; the answer may come from any thread, later.
//
// Hostile peers: sizes, connections and times are bounded by proto/limits.h. A malformed request is
// answered 400, a body or header that is too large 413 or 431, a slow one is closed, a connection
// above the maximum is closed at once. With TLS the handshake has limits::kAuthenticateMillis; who
// speaks plain HTTP is told so (400). HEAD reaches the handler as GET; its body is not sent.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "common/address.h"
#include "common/http.h"
#include "common/tls.h"
#include "proto/limits.h"

namespace kvpool {

struct HttpServerOptions {
  HostPort address{"127.0.0.1", 0};  // port 0: the system picks one
  std::chrono::milliseconds deadline = std::chrono::seconds(limits::kHttpSeconds);
  uint32_t connections = limits::kHttpConnections;
  std::shared_ptr<TlsSource> tls;  // null: HTTP in the clear
};

class HttpServer {
 public:
  // Sends the response. Any thread, at most once; dropping every copy uncalled answers 500.
  using Done = std::function<void(HttpResponse)>;
  // Called on the server's thread; must not block or throw.
  using Handler = std::function<void(HttpRequest, Done)>;

  struct Counters {
    uint64_t handled = 0;        // answered by the handler, or 500 because it forgot
    uint64_t refused = 0;        // answered 4xx by the handler; not in `handled`
    uint64_t bad_requests = 0;   // answered 400, 413 or 431 without it
    uint64_t above_maximum = 0;  // connections closed at once
    // Connections closed because a request did not come, or did not come whole, or its answer was
    // not read in time; not those that fell idle between requests.
    uint64_t timed_out = 0;
  };

  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const HttpServerOptions& options,
                                                           Handler handler);
  // Stops accepting, gives answers under way one second, then closes everything. A Done called
  // later does nothing.
  ~HttpServer();

  // With the port that was picked.
  const HostPort& address() const { return address_; }
  Counters counters() const;  // any thread

 private:
  class Service;
  struct Loop;

  HttpServer(HostPort address, std::shared_ptr<Service> service, std::unique_ptr<Loop> loop);

  HostPort address_;
  std::shared_ptr<Service> service_;
  std::unique_ptr<Loop> loop_;
};

}  // namespace kvpool

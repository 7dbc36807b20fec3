// A real etcd of one member in a scratch folder, on ports of its own: Debian's etcd-server, which
// scripts/setup installs. Test code, one thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <signal.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/http_client.h"
#include "tests/integration/process.h"

namespace kvpool {

class EtcdServer {
 public:
  static constexpr char kProgram[] = "/usr/bin/etcd";
  // Whether there is one to start. A test without it is skipped.
  static bool Installed() { return std::filesystem::exists(kProgram); }

  explicit EtcdServer(std::vector<std::string> flags = {}) : flags_(std::move(flags)) { Start(); }
  // Over TLS: shows `server`, and asks for a certificate that its CA has signed. `client` is ours.
  EtcdServer(const TlsFiles& server, std::shared_ptr<TlsSource> client)
      : flags_{"--cert-file",       server.certificate, "--key-file",        server.key,
               "--trusted-ca-file", server.ca,          "--client-cert-auth"},
        client_(std::move(client)) {
    Start();
  }
  ~EtcdServer() { Kill(); }

  // Blocks until it answers.
  void Start() {
    const std::string client =
        (client_ ? "https" : "http") + ("://127.0.0.1:" + std::to_string(port_));
    const std::string peer = "http://127.0.0.1:" + std::to_string(peer_port_);
    std::vector<std::string> args{"--data-dir",
                                  folder_ / "data",
                                  "--listen-client-urls",
                                  client,
                                  "--advertise-client-urls",
                                  client,
                                  "--listen-peer-urls",
                                  peer,
                                  "--initial-advertise-peer-urls",
                                  peer,
                                  "--initial-cluster",
                                  "default=" + peer};
    args.insert(args.end(), flags_.begin(), flags_.end());
    process_ = Process(kProgram, args, folder_ / "etcd.log");
    healthy_ = Eventually(
        [this] {
          const auto answer =
              HttpCall(address(), {.path = "/health"}, std::chrono::seconds(1), client_.get());
          return answer.ok() && answer->body.find("true") != std::string::npos;
        },
        std::chrono::seconds(30));
  }
  // As a power failure does; its data stay for Start.
  void Kill() {
    if (process_.pid() <= 0) return;
    process_.Kill(SIGKILL);
    process_.Wait();
  }
  // SIGSTOP, SIGCONT.
  void Signal(int signal) const { process_.Kill(signal); }

  bool healthy() const { return healthy_; }
  HostPort address() const { return {"127.0.0.1", port_}; }

 private:
  const std::vector<std::string> flags_;
  const std::shared_ptr<TlsSource> client_;  // null: HTTP
  const uint16_t port_ = FreePort(), peer_port_ = FreePort();
  TempDir folder_;
  Process process_;
  bool healthy_ = false;
};

}  // namespace kvpool

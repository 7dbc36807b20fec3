// TLS from files: a certificate, its key and the CAs that peers are checked with, in PEM. Checked
// together, and read anew when they have changed, so that certificates can be replaced while
// connections go on. What a connection does with them is rpc_tls.h's and http_stream.h's.
//
// Any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <openssl/types.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/address.h"
#include "common/metrics.h"

namespace kvpool {

// Paths; an empty one is not set.
struct TlsFiles {
  std::string certificate;  // of this program, with intermediate ones behind it
  std::string key;          // the certificate's, not encrypted
  std::string ca;           // who may have signed a peer's; not set: the system's CAs
};

// What the files held when they were read.
struct TlsMaterial {
  std::string certificate, key;   // PEM, empty without
  std::vector<std::string> ca;    // PEM, a certificate each; empty: the system's
  int64_t certificate_until = 0;  // the earliest end of the certificate file's, seconds of 1970
  int64_t ca_until = 0;           // of the CA file's
  // All of it for OpenSSL, from TLS 1.2 on. Its user says which side it is and verifies its peer.
  std::shared_ptr<SSL_CTX> context;
};

class TlsSource {
 public:
  // Reads the files. InvalidArgument, NotFound or PermissionDenied (a key that everyone may read)
  // say which file is wrong and how.
  static absl::StatusOr<std::shared_ptr<TlsSource>> Open(TlsFiles files);

  // What the files hold now. While that makes no sense it is what they held before, and the log
  // says once what is wrong.
  std::shared_ptr<const TlsMaterial> Current();

 private:
  using Stamp = std::vector<int64_t>;  // changes with the files

  TlsSource(TlsFiles files, Stamp stamp, std::shared_ptr<const TlsMaterial> material);
  static Stamp StampOf(const TlsFiles& files);

  const TlsFiles files_;
  std::mutex mutex_;
  Stamp stamp_;                                  // guarded by mutex_
  std::shared_ptr<const TlsMaterial> material_;  // guarded by mutex_
};

// Settings (name, value) of which either all or none must be set: InvalidArgument names them.
absl::Status CheckAllOrNone(const std::vector<std::pair<std::string, std::string>>& settings);

// Warns of an address in a setting that other machines reach without TLS. `risk` is what they could
// read: "tokens and budgets". `settings` turn it on.
void WarnInTheClear(const std::string& setting, const HostPort& address, const std::string& risk,
                    const std::string& settings);

// What an operator can do about an error of OpenSSL's, to follow its text; often empty.
std::string TlsAdvice(const std::string& error);

// Who uses which files, by the name that metrics give it.
using TlsUses = std::vector<std::pair<std::string, std::shared_ptr<TlsSource>>>;

// Sets {use, file} of `family` to the time at which what is in use ends. Null sources have none.
void ShowExpiry(const TlsUses& uses, MetricFamily<Gauge> family);
inline constexpr char kExpiryHelp[] =
    "When the earliest certificate of a file ends, by its use; in seconds since 1970.";

}  // namespace kvpool

// Tokens: drawn from the system's random source, stored as hashes, compared in constant time. A
// token carries 256 bits, so a plain SHA-256 needs no salt. Values, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvpool {

using Sha256Hash = std::array<uint8_t, 32>;

Sha256Hash Sha256(std::string_view bytes);

// "kvp_" and 64 hexadecimal digits.
absl::StatusOr<std::string> NewToken();

// A random number, such as an incarnation; never 0.
absl::StatusOr<uint64_t> RandomId();

// Equality in a time that depends on the lengths alone.
bool EqualInConstantTime(std::string_view a, std::string_view b);
bool EqualInConstantTime(const Sha256Hash& a, const Sha256Hash& b);

// Lower-case hexadecimal.
std::string ToHex(const Sha256Hash& hash);
// The reverse, exactly 64 digits.
absl::StatusOr<Sha256Hash> FromHex(const std::string& digits);

// PermissionDenied for a file that everyone may read, NotFound for one that is not there. `what`
// begins the message: "token file".
absl::Status CheckPrivate(const std::string& what, const std::string& path);

// The first line of a file that holds a token, at most limits::kTokenBytes. Refuses a file that
// others may read.
absl::StatusOr<std::string> ReadTokenFile(const std::string& path);

}  // namespace kvpool

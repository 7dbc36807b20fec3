// OpenSSL behind a small interface.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/secret.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <openssl/sha.h>
#include <sys/stat.h>

#include <algorithm>
#include <fstream>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

template <size_t N>
std::string Hex(const std::array<uint8_t, N>& bytes) {
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

template <size_t N>
absl::StatusOr<std::array<uint8_t, N>> RandomBytes() {
  std::array<uint8_t, N> bytes;
  if (RAND_bytes(bytes.data(), static_cast<int>(bytes.size())) != 1) {
    return absl::InternalError("the system's random source failed");
  }
  return bytes;
}

}  // namespace

Sha256Hash Sha256(std::string_view bytes) {
  Sha256Hash hash;
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), hash.data());
  return hash;
}

absl::StatusOr<std::string> NewToken() {
  const auto bytes = RandomBytes<32>();
  if (!bytes.ok()) return bytes.status();
  return "kvp_" + Hex(*bytes);
}

absl::StatusOr<uint64_t> RandomId() {
  uint64_t id = 0;
  while (id == 0) {
    const auto bytes = RandomBytes<8>();
    if (!bytes.ok()) return bytes.status();
    for (const uint8_t byte : *bytes) id = id << 8 | byte;
  }
  return id;
}

bool EqualInConstantTime(std::string_view a, std::string_view b) {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

bool EqualInConstantTime(const Sha256Hash& a, const Sha256Hash& b) {
  return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

std::string ToHex(const Sha256Hash& hash) { return Hex(hash); }

absl::StatusOr<Sha256Hash> FromHex(const std::string& digits) {
  const bool good = std::all_of(digits.begin(), digits.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
  });
  Sha256Hash hash;
  if (!good || digits.size() != 2 * hash.size()) {
    return absl::InvalidArgumentError("a hash must be 64 digits 0-9 and a-f");
  }
  const std::string bytes = absl::HexStringToBytes(digits);
  std::copy(bytes.begin(), bytes.end(), hash.begin());
  return hash;
}

absl::Status CheckPrivate(const std::string& what, const std::string& path) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) {
    return absl::NotFoundError(absl::StrCat(what, " ", path, " cannot be read"));
  }
  if ((info.st_mode & S_IRWXO) != 0) {
    return absl::PermissionDeniedError(
        absl::StrCat(what, " ", path, " is open to everyone; chmod it to 0600 or 0640"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadTokenFile(const std::string& path) {
  if (absl::Status status = CheckPrivate("token file", path); !status.ok()) return status;
  std::ifstream file(path);
  std::string token(limits::kTokenBytes + 2, '\0');
  file.read(token.data(), static_cast<std::streamsize>(token.size()));
  token.resize(static_cast<size_t>(file.gcount()));
  token.resize(std::min(token.find_first_of("\r\n"), token.size()));
  if (token.empty() || token.size() > limits::kTokenBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "token file ", path, " must hold one token of 1..", limits::kTokenBytes, " bytes"));
  }
  return token;
}

}  // namespace kvpool

// OpenSSL's side of it. Whatever fails here leaves OpenSSL's queue of errors empty: what is left in
// it would be taken for an error of the next connection on the thread.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/tls.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <sys/stat.h>
#include <time.h>

#include <algorithm>
#include <fstream>
#include <iterator>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/secret.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

template <auto free>
struct FreeWith {
  template <typename T>
  void operator()(T* object) const {
    free(object);
  }
};
using Bio = std::unique_ptr<BIO, FreeWith<BIO_free>>;
using Certificate = std::unique_ptr<X509, FreeWith<X509_free>>;
using Key = std::unique_ptr<EVP_PKEY, FreeWith<EVP_PKEY_free>>;

Bio Reader(const std::string& text) {
  return Bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

absl::StatusOr<std::string> ReadFile(const std::string& what, const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(what, " ", path, " cannot be read"));
  std::string text(std::istreambuf_iterator<char>(file), {});
  if (text.size() <= limits::kConfigFileBytes) return text;
  return absl::InvalidArgumentError(absl::StrCat(what, " ", path, " has ", text.size(),
                                                 " bytes; at most ", limits::kConfigFileBytes,
                                                 " are read"));
}

// All certificates of a file, at least one.
absl::StatusOr<std::vector<Certificate>> ReadCertificates(const std::string& what,
                                                          const std::string& path) {
  const auto text = ReadFile(what, path);
  if (!text.ok()) return text.status();
  const Bio bio = Reader(*text);
  std::vector<Certificate> certificates;
  while (X509* next = PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr)) {
    certificates.emplace_back(next);
  }
  const bool at_end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  ERR_clear_error();
  if (at_end && !certificates.empty()) return certificates;
  return absl::InvalidArgumentError(
      absl::StrCat(what, " ", path, certificates.empty() ? " holds no certificate" : " is damaged",
                   "; it must be PEM (-----BEGIN CERTIFICATE-----)"));
}

std::string ToPem(X509& certificate) {
  const Bio bio(BIO_new(BIO_s_mem()));
  PEM_write_bio_X509(bio.get(), &certificate);
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &data);
  return std::string(data, static_cast<size_t>(size));
}

int64_t EndOf(const std::vector<Certificate>& certificates) {
  int64_t earliest = INT64_MAX;
  for (const Certificate& certificate : certificates) {
    tm end{};
    ASN1_TIME_to_tm(X509_get0_notAfter(certificate.get()), &end);
    earliest = std::min<int64_t>(earliest, timegm(&end));
  }
  return earliest;
}

// Without it OpenSSL would ask on the terminal.
int NoPassword(char*, int, int, void*) { return 0; }

absl::StatusOr<Key> ReadKey(const std::string& path, std::string* pem) {
  if (absl::Status status = CheckPrivate("key file", path); !status.ok()) return status;
  absl::StatusOr<std::string> text = ReadFile("key file", path);
  if (!text.ok()) return text.status();
  Key key(PEM_read_bio_PrivateKey(Reader(*text).get(), nullptr, NoPassword, nullptr));
  ERR_clear_error();
  if (key == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("key file ", path,
                     " holds no key that can be used; it must be PEM (-----BEGIN PRIVATE"
                     " KEY-----) without a password"));
  }
  *pem = *std::move(text);
  return key;
}

absl::Status UseCertificate(const TlsFiles& files, TlsMaterial& material) {
  const auto chain = ReadCertificates("certificate file", files.certificate);
  if (!chain.ok()) return chain.status();
  const auto key = ReadKey(files.key, &material.key);
  if (!key.ok()) return key.status();
  SSL_CTX* const context = material.context.get();
  bool good = SSL_CTX_use_certificate(context, chain->front().get()) == 1;
  for (const Certificate& certificate : *chain) {
    material.certificate += ToPem(*certificate);
    if (certificate == chain->front()) continue;
    good = good && SSL_CTX_add1_chain_cert(context, certificate.get()) == 1;
  }
  const bool fits = SSL_CTX_use_PrivateKey(context, key->get()) == 1;
  ERR_clear_error();
  if (!good || !fits) {
    return absl::InvalidArgumentError(absl::StrCat(
        fits ? "certificate file " : "the key in ", fits ? files.certificate : files.key,
        fits ? " cannot be used"
             : absl::StrCat(" is not that of the certificate in ", files.certificate)));
  }
  material.certificate_until = EndOf(*chain);
  return absl::OkStatus();
}

absl::Status UseCa(const TlsFiles& files, TlsMaterial& material) {
  const auto certificates = ReadCertificates("CA file", files.ca);
  if (!certificates.ok()) return certificates.status();
  for (const Certificate& certificate : *certificates) {
    X509_STORE_add_cert(SSL_CTX_get_cert_store(material.context.get()), certificate.get());
    material.ca.push_back(ToPem(*certificate));
  }
  ERR_clear_error();
  material.ca_until = EndOf(*certificates);
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const TlsMaterial>> ReadMaterial(const TlsFiles& files) {
  auto material = std::make_shared<TlsMaterial>();
  material->context = std::shared_ptr<SSL_CTX>(SSL_CTX_new(TLS_method()), SSL_CTX_free);
  SSL_CTX_set_min_proto_version(material->context.get(), TLS1_2_VERSION);
  SSL_CTX_set_options(material->context.get(), SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION);
  if (!files.certificate.empty()) {
    if (absl::Status status = UseCertificate(files, *material); !status.ok()) return status;
  }
  if (files.ca.empty()) {
    SSL_CTX_set_default_verify_paths(material->context.get());
  } else if (absl::Status status = UseCa(files, *material); !status.ok()) {
    return status;
  }
  const int64_t now = time(nullptr);
  const auto warn = [now](const std::string& file, int64_t until) {
    if (file.empty() || until > now) return;
    Logger("tls").Warn("a certificate has expired: make a new one", {{"file", file}});
  };
  ERR_clear_error();
  warn(files.certificate, material->certificate_until);
  warn(files.ca, material->ca_until);
  return material;
}

// A part of an error's text, and what lies behind it.
struct Known {
  const char* error;
  const char* advice;
};
constexpr Known kKnown[] = {
    {"alert unknown ca", "the other side does not know the CA of the certificate shown to it"},
    {"alert certificate expired", "the certificate shown to the other side has expired"},
    {"certificate required", "the other side asks for a certificate: set one"},
    {"alert handshake failure", "the other side may ask for a certificate"},
    {"alert bad certificate", "the other side refuses the certificate shown to it"},
    {"alert unsupported certificate", "the certificate shown is not for this use"},
    {"peer did not return a certificate", "the other side must be given a certificate"},
    {"certificate verify failed",
     "what the other side shows has expired or is signed by no CA that is known here"},
    {"unable to continue I/O", "the other side hung up in the handshake"},
    {"hostname mismatch", "the certificate is for other names than the one dialled"},
    {"IP address mismatch", "the certificate is for other addresses than the one dialled"},
    {"unable to get local issuer certificate", "it was signed by another CA than the one given"},
    {"self-signed certificate", "it was signed by another CA than the one given"},
    {"wrong version number", "the other side does not speak TLS on this port"},
    {"http request", "the other side speaks plain HTTP"},
    {"unsupported protocol", "the other side speaks no TLS 1.2 or newer"},
};

}  // namespace

std::string TlsAdvice(const std::string& error) {
  for (const Known& known : kKnown) {
    if (absl::StrContains(error, known.error)) return absl::StrCat(" (", known.advice, ")");
  }
  return "";
}

absl::Status CheckAllOrNone(const std::vector<std::pair<std::string, std::string>>& settings) {
  std::string names, missing, given;
  for (const auto& [name, value] : settings) {
    absl::StrAppend(&names, names.empty() ? "" : ", ", name);
    (value.empty() ? missing : given) = name;
  }
  if (missing.empty() || given.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      given, " is set and ", missing, " is not: set all of ", names, ", or none of them"));
}

void WarnInTheClear(const std::string& setting, const HostPort& address, const std::string& risk,
                    const std::string& settings) {
  if (IsLoopback(address)) return;
  Logger("tls").Warn("no TLS on an address that other machines reach",
                     {{"setting", setting},
                      {"address", ToString(address)},
                      {"in_the_clear", risk},
                      {"set", settings}});
}

TlsSource::TlsSource(TlsFiles files, Stamp stamp, std::shared_ptr<const TlsMaterial> material)
    : files_(std::move(files)), stamp_(std::move(stamp)), material_(std::move(material)) {}

TlsSource::Stamp TlsSource::StampOf(const TlsFiles& files) {
  Stamp stamp;
  for (const std::string* path : {&files.certificate, &files.key, &files.ca}) {
    struct stat info {};
    if (path->empty() || stat(path->c_str(), &info) != 0) continue;
    stamp.insert(stamp.end(), {static_cast<int64_t>(info.st_ino), info.st_size, info.st_mode,
                               info.st_mtim.tv_sec, info.st_mtim.tv_nsec, info.st_ctim.tv_nsec});
  }
  return stamp;
}

absl::StatusOr<std::shared_ptr<TlsSource>> TlsSource::Open(TlsFiles files) {
  Stamp stamp = StampOf(files);
  auto material = ReadMaterial(files);
  if (!material.ok()) return material.status();
  return std::shared_ptr<TlsSource>(
      new TlsSource(std::move(files), std::move(stamp), *std::move(material)));
}

std::shared_ptr<const TlsMaterial> TlsSource::Current() {
  std::lock_guard lock(mutex_);
  Stamp stamp = StampOf(files_);
  if (stamp == stamp_) return material_;
  stamp_ = std::move(stamp);
  auto material = ReadMaterial(files_);
  if (material.ok()) {
    material_ = *std::move(material);
    Logger("tls").Info("certificates read anew",
                       {{"certificate", files_.certificate}, {"ca", files_.ca}});
  } else {
    Logger("tls").Error("what was read before stays in use",
                        {{"error", std::string(material.status().message())}});
  }
  return material_;
}

void ShowExpiry(const TlsUses& uses, MetricFamily<Gauge> family) {
  for (const auto& [use, source] : uses) {
    if (source == nullptr) continue;
    const auto material = source->Current();
    const auto show = [&family, &use = use](const char* file, int64_t until) {
      if (until == 0) return;
      family.With({{"use", use}, {"file", file}}).Set(static_cast<double>(until));
    };
    show("certificate", material->certificate_until);
    show("ca", material->ca_until);
  }
}

}  // namespace kvpool

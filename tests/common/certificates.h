// Certificates for tests: a CA that signs, in PEM files of a scratch folder. Test code, one thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>

#include <cstdio>
#include <memory>
#include <string>
#include <utility>

#include "common/tls.h"

namespace kvpool {

class TestCa {
 public:
  struct Subject {
    std::string common_name;
    std::string alternatives = {};         // "DNS:localhost,IP:127.0.0.1"; none when empty
    long begins_s = -3600, ends_s = 3600;  // from now
  };

  // Writes FOLDER/NAME.pem.
  TestCa(std::string folder, const std::string& name)
      : folder_(std::move(folder)),
        file_(folder_ + "/" + name + ".pem"),
        key_(EVP_EC_gen("P-256")) {
    certificate_ = Make({.common_name = name}, *key_, "CA:TRUE");
    WritePem(file_, *certificate_);
  }

  const std::string& file() const { return file_; }

  // Writes FOLDER/NAME.pem and .key. The CA of what it returns is this one.
  TlsFiles Issue(const std::string& name, const Subject& subject) const {
    const Key key(EVP_EC_gen("P-256"));
    TlsFiles files{.certificate = folder_ + "/" + name + ".pem",
                   .key = folder_ + "/" + name + ".key",
                   .ca = file_};
    WritePem(files.certificate, *Make(subject, *key, "CA:FALSE"));
    FILE* const file = fopen(files.key.c_str(), "w");
    PEM_write_PrivateKey(file, key.get(), nullptr, nullptr, 0, nullptr, nullptr);
    fclose(file);
    chmod(files.key.c_str(), 0600);
    return files;
  }

 private:
  struct Free {
    void operator()(X509* certificate) const { X509_free(certificate); }
    void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
  };
  using Certificate = std::unique_ptr<X509, Free>;
  using Key = std::unique_ptr<EVP_PKEY, Free>;

  static void WritePem(const std::string& path, X509& certificate) {
    FILE* const file = fopen(path.c_str(), "w");
    PEM_write_X509(file, &certificate);
    fclose(file);
  }
  static void Extend(X509& certificate, int kind, const std::string& value) {
    X509_EXTENSION* const extension = X509V3_EXT_conf_nid(nullptr, nullptr, kind, value.c_str());
    X509_add_ext(&certificate, extension, -1);
    X509_EXTENSION_free(extension);
  }

  Certificate Make(const Subject& subject, EVP_PKEY& key, const std::string& constraints) const {
    static long serial = 0;
    Certificate made(X509_new());
    X509_set_version(made.get(), X509_VERSION_3);
    ASN1_INTEGER_set(X509_get_serialNumber(made.get()), ++serial);
    X509_gmtime_adj(X509_getm_notBefore(made.get()), subject.begins_s);
    X509_gmtime_adj(X509_getm_notAfter(made.get()), subject.ends_s);
    X509_NAME* const name = X509_get_subject_name(made.get());
    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC,
                               reinterpret_cast<const unsigned char*>(subject.common_name.c_str()),
                               -1, -1, 0);
    X509_set_issuer_name(made.get(),
                         certificate_ ? X509_get_subject_name(certificate_.get()) : name);
    X509_set_pubkey(made.get(), &key);
    Extend(*made, NID_basic_constraints, "critical," + constraints);
    if (!subject.alternatives.empty()) {
      Extend(*made, NID_subject_alt_name, subject.alternatives);
    }
    X509_sign(made.get(), key_.get(), EVP_sha256());
    return made;
  }

  const std::string folder_, file_;
  const Key key_;
  Certificate certificate_;  // null while it is made
};

}  // namespace kvpool

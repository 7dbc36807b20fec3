// Files of TLS: what is wrong with them is said, and what has changed is read anew.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/tls.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>

#include "tests/common/certificates.h"
#include "tests/integration/process.h"

namespace kvpool {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class TlsTest : public ::testing::Test {
 protected:
  std::string ErrorOf(const TlsFiles& files) {
    const auto source = TlsSource::Open(files);
    EXPECT_FALSE(source.ok());
    return source.status().ToString();
  }
  static void Write(const std::string& path, const std::string& text) {
    std::ofstream(path) << text;
  }
  static std::string Read(const std::string& path) {
    return {std::istreambuf_iterator<char>(std::ifstream(path).rdbuf()), {}};
  }

  TempDir folder_;
  const TestCa ca_{folder_ / "", "ca"};
  const TlsFiles files_ = ca_.Issue("a", {.common_name = "a", .ends_s = 5000});
};

TEST_F(TlsTest, TellsWhatTheFilesHoldAndWhenThatEnds) {
  const auto source = TlsSource::Open(files_);
  ASSERT_TRUE(source.ok()) << source.status();
  const auto material = (*source)->Current();
  EXPECT_EQ(material->certificate, Read(files_.certificate));
  EXPECT_EQ(material->key, Read(files_.key));
  EXPECT_EQ(material->ca, std::vector<std::string>{Read(files_.ca)});
  EXPECT_NEAR(static_cast<double>(material->certificate_until - time(nullptr)), 5000, 60);
  EXPECT_NEAR(static_cast<double>(material->ca_until - time(nullptr)), 3600, 60);
  EXPECT_EQ((*source)->Current(), material) << "nothing has changed";
}

TEST_F(TlsTest, AChainEndsWithItsEarliestCertificateAndACaFileMayHoldSeveral) {
  const TlsFiles early = ca_.Issue("early", {.common_name = "early", .ends_s = 100});
  const TestCa other(folder_ / "", "other");
  Write(files_.certificate, Read(files_.certificate) + Read(early.certificate));
  Write(files_.ca, "a comment\n" + Read(files_.ca) + Read(other.file()));
  const auto source = TlsSource::Open(files_);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ((*source)->Current()->ca.size(), 2u);
  EXPECT_NEAR(static_cast<double>((*source)->Current()->certificate_until - time(nullptr)), 100,
              60);
}

TEST_F(TlsTest, SaysWhichFileIsWrongAndWhy) {
  TlsFiles files = files_;
  files.certificate = folder_ / "none.pem";
  EXPECT_THAT(ErrorOf(files), AllOf(HasSubstr("none.pem"), HasSubstr("cannot be read")));
  files = files_;
  files.key = folder_ / "none.key";
  EXPECT_THAT(ErrorOf(files), AllOf(HasSubstr("none.key"), HasSubstr("cannot be read")));
  files.key = ca_.Issue("b", {.common_name = "b"}).key;
  EXPECT_THAT(ErrorOf(files),
              AllOf(HasSubstr("b.key"), HasSubstr("is not that of"), HasSubstr("a.pem")));
  files = files_;
  files.ca = files_.key;
  EXPECT_THAT(ErrorOf(files), AllOf(HasSubstr("a.key"), HasSubstr("holds no certificate")));
  files = files_;
  Write(files.ca, Read(files.ca) + "-----BEGIN CERTIFICATE-----\nrubbish\n");
  EXPECT_THAT(ErrorOf(files), AllOf(HasSubstr("ca.pem"), HasSubstr("is damaged")));
}

TEST_F(TlsTest, RefusesAKeyThatEveryoneMayReadOrThatNeedsAPassword) {
  chmod(files_.key.c_str(), 0644);
  EXPECT_THAT(ErrorOf(files_),
              AllOf(HasSubstr("a.key"), HasSubstr("open to everyone"), HasSubstr("chmod")));
  chmod(files_.key.c_str(), 0640);
  EXPECT_TRUE(TlsSource::Open(files_).ok());
  FILE* const file = fopen(files_.key.c_str(), "w");
  EVP_PKEY* const key = EVP_EC_gen("P-256");
  char password[] = "secret";
  PEM_write_PrivateKey(file, key, EVP_aes_128_cbc(), nullptr, 0, nullptr, password);
  EVP_PKEY_free(key);
  fclose(file);
  EXPECT_THAT(ErrorOf(files_), AllOf(HasSubstr("a.key"), HasSubstr("without a password")));
}

TEST_F(TlsTest, ReadsFilesAnewWhenTheyHaveChangedAndKeepsWhatItHadWhenTheyAreWrong) {
  const auto source = TlsSource::Open(files_);
  ASSERT_TRUE(source.ok()) << source.status();
  const auto before = (*source)->Current();
  Write(files_.key, "rubbish");
  EXPECT_EQ((*source)->Current(), before);
  std::filesystem::remove(files_.certificate);
  EXPECT_EQ((*source)->Current(), before);
  ca_.Issue("a", {.common_name = "a", .ends_s = 9000});
  const auto after = (*source)->Current();
  EXPECT_NEAR(static_cast<double>(after->certificate_until - time(nullptr)), 9000, 60);
  EXPECT_NE(after->certificate, before->certificate);
}

TEST_F(TlsTest, AnExpiredCertificateIsReadBecauseItsPeerSaysWhatItThinks) {
  const TlsFiles expired = ca_.Issue("old", {.common_name = "old", .ends_s = -10});
  const auto source = TlsSource::Open(expired);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_LT((*source)->Current()->certificate_until, time(nullptr));
}

TEST_F(TlsTest, ShowsWhenWhatIsInUseEnds) {
  Metrics metrics("test");
  auto family = metrics.GaugeFamily("kvpool_test_timestamp_seconds", "when");
  const auto all = TlsSource::Open(files_), ca = TlsSource::Open({.ca = files_.ca});
  ASSERT_TRUE(all.ok() && ca.ok());
  ShowExpiry({{"agents", *all}, {"etcd", *ca}, {"http", nullptr}}, family);
  const std::string page = metrics.Serialize();
  EXPECT_THAT(page, HasSubstr(R"({file="certificate",use="agents"})"));
  EXPECT_THAT(page, HasSubstr(R"({file="ca",use="etcd"})"));
  EXPECT_THAT(page, ::testing::Not(HasSubstr(R"({file="certificate",use="etcd"})")));
  EXPECT_THAT(page, ::testing::Not(HasSubstr("http")));
  EXPECT_EQ(family.With({{"use", "agents"}, {"file", "ca"}}).Value(),
            static_cast<double>((*all)->Current()->ca_until));
}

TEST(TlsSettingsTest, AllAreSetOrNone) {
  EXPECT_TRUE(CheckAllOrNone({{"a", ""}, {"b", ""}}).ok());
  EXPECT_TRUE(CheckAllOrNone({{"a", "1"}, {"b", "2"}}).ok());
  EXPECT_THAT(CheckAllOrNone({{"a", "1"}, {"b", ""}}).ToString(),
              HasSubstr("a is set and b is not: set all of a, b, or none"));
  EXPECT_THAT(CheckAllOrNone({{"a", ""}, {"b", "2"}}).ToString(),
              HasSubstr("b is set and a is not"));
}

TEST(TlsSettingsTest, AdviceFollowsWhatOpenSslSays) {
  EXPECT_THAT(TlsAdvice("tlsv1 alert unknown ca"), HasSubstr("does not know the CA"));
  EXPECT_EQ(TlsAdvice("something new"), "");
}

}  // namespace
}  // namespace kvpool

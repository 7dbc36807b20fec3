// Hashes, tokens, comparison, token files.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/secret.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <set>

#include "proto/limits.h"

namespace kvpool {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;

TEST(SecretTest, Sha256IsTheStandards) {
  EXPECT_EQ(ToHex(Sha256("abc")),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(SecretTest, TokensDifferAndFitTheLimit) {
  std::set<std::string> tokens;
  std::set<uint64_t> ids;
  for (int i = 0; i < 100; ++i) {
    tokens.insert(*NewToken());
    ids.insert(*RandomId());
  }
  EXPECT_EQ(tokens.size(), 100u);
  EXPECT_EQ(ids.size(), 100u);
  EXPECT_EQ(ids.count(0), 0u);
  EXPECT_THAT(*tokens.begin(), MatchesRegex("kvp_[0-9a-f]+"));
  EXPECT_EQ(tokens.begin()->size(), 68u);
  EXPECT_LE(tokens.begin()->size(), limits::kTokenBytes);
}

TEST(SecretTest, Comparison) {
  EXPECT_TRUE(EqualInConstantTime("abc", "abc"));
  EXPECT_FALSE(EqualInConstantTime("abc", "abd"));
  EXPECT_FALSE(EqualInConstantTime("abc", "ab"));
  EXPECT_TRUE(EqualInConstantTime("", ""));
  EXPECT_TRUE(EqualInConstantTime(Sha256("a"), Sha256("a")));
  EXPECT_FALSE(EqualInConstantTime(Sha256("a"), Sha256("b")));
}

TEST(SecretTest, TokenFiles) {
  char name[] = "/tmp/kvpool-token-XXXXXX";
  close(mkstemp(name));
  const auto read = [&](const std::string& text) {
    std::ofstream(name) << text;
    return ReadTokenFile(name);
  };
  EXPECT_EQ(*read("kvp_1\n"), "kvp_1");
  EXPECT_EQ(*read("kvp_1\r\nsecond"), "kvp_1");
  EXPECT_EQ(*read(std::string(limits::kTokenBytes, 'x')), std::string(limits::kTokenBytes, 'x'));
  EXPECT_FALSE(read(std::string(limits::kTokenBytes + 1, 'x')).ok());
  EXPECT_FALSE(read("").ok());
  chmod(name, 0644);
  EXPECT_THAT(std::string(read("kvp_1").status().message()), HasSubstr("open to everyone"));
  unlink(name);
  EXPECT_EQ(ReadTokenFile(name).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace kvpool

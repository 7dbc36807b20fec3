// kvpool-worker as a process: what it prints, and how it ends.
//
// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdio.h>
#include <sys/wait.h>

#include <boost/json.hpp>
#include <sstream>

#include "tests/worker/files.h"
#include "tests/worker/support.h"
#include "worker/checkpoint.h"

namespace kvpool {
namespace {

using testing::HasSubstr;

struct Ended {
  int status = -1;
  std::string output;  // stdout and stderr
};

Ended RunWorker(const std::string& flags) {
  const std::string command = ProgramPath("kvpool-worker") + " " + flags + " 2>&1";
  FILE* const pipe = popen(command.c_str(), "r");
  Ended ended;
  char buffer[4096];
  for (size_t n; (n = fread(buffer, 1, sizeof buffer, pipe)) > 0;) ended.output.append(buffer, n);
  const int status = pclose(pipe);
  ended.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return ended;
}

const std::string kModel = "--kv private --model " + kModelDirectory + " ";

TEST(ProgramTest, GeneratesFromAFileOfPrompts) {
  TemporaryFolder folder;
  const std::string prompts =
      folder.Write("prompts",
                   "It was a dark night\n{\"prompt\": \"The secret key of Flora is 12345. He went "
                   "home. The secret key of Flora is\", \"tenant\": \"a\", \"max_tokens\": 6}\n");
  const std::string summary = folder.path() + "/summary.json";
  const Ended ended =
      RunWorker(kModel + "--prompts " + prompts + " --max-tokens 4 -o json --json " + summary);
  ASSERT_EQ(ended.status, 0) << ended.output;
  std::istringstream lines(ended.output);
  std::map<int64_t, boost::json::value> results;
  for (std::string line; std::getline(lines, line);) {
    const boost::json::value json = boost::json::parse(line);
    if (json.as_object().contains("id")) results[json.at("id").as_int64()] = json;
  }
  ASSERT_EQ(results.size(), 2u);
  EXPECT_EQ(results[0].at("tokens").as_array().size(), 4u);
  EXPECT_EQ(results[0].at("finish"), "length");
  EXPECT_EQ(results[1].at("tenant"), "a");
  EXPECT_THAT(std::string(results[1].at("text").as_string()), HasSubstr(" 12345"));
  const boost::json::value json = boost::json::parse(ReadTextFile(summary).value());
  EXPECT_EQ(json.at("kv"), "private");
  ASSERT_EQ(json.at("tenants").as_array().size(), 2u);
  EXPECT_EQ(json.at("tenants").at(1).at("generated_tokens"), 6);
  // 24 prompt tokens or so and 6 more: two pages of 16 tokens x 3 KiB.
  EXPECT_EQ(json.at("tenants").at(1).at("full_cache_bytes"), 3 * 16 * 3072);
}

TEST(ProgramTest, ScoresAText) {
  TemporaryFolder folder;
  const std::string summary = folder.path() + "/summary.json";
  const Ended ended = RunWorker(kModel + "--score " + SourcePath("worker/demo/text.txt") +
                                " --context 128 --windows 2 --json " + summary);
  ASSERT_EQ(ended.status, 0) << ended.output;
  EXPECT_THAT(ended.output, HasSubstr("254 tokens scored"));
  const boost::json::value json = boost::json::parse(ReadTextFile(summary).value());
  EXPECT_EQ(json.at("score").at("tokens"), 254);
  EXPECT_NEAR(std::log(json.at("score").at("perplexity").as_double()),
              json.at("score").at("mean_nll").as_double(), 1e-9);
}

TEST(ProgramTest, ARequestThatCannotFitEndsWithThree) {
  TemporaryFolder folder;
  const Ended ended =
      RunWorker(kModel + "--max-tokens 5000 --prompts " + folder.Write("p", "Hello\n"));
  EXPECT_EQ(ended.status, 3);
  EXPECT_THAT(ended.output, HasSubstr("tooLarge"));
  EXPECT_THAT(ended.output, HasSubstr("the model's context has 2048"));
}

TEST(ProgramTest, BadInputEndsWithAReason) {
  TemporaryFolder folder;
  const std::string prompts = folder.Write("p", "Hello\n{\"prompt\":1}\n");
  const struct {
    std::string flags, part;
  } cases[] = {
      {kModel, "--prompts"},
      {kModel + "--prompts " + prompts, "/p: line 2"},
      {kModel + "--prompts " + folder.path() + "/none", "does not exist"},
      {kModel + "--score " + folder.Write("e", ""), "empty"},
      {"--kv private --model " + folder.path() + " --score " + prompts, "config.json"},
      {"--kv nowhere --model " + kModelDirectory + " --prompts " + prompts, "--kv"},
      {"--kv pool --model " + kModelDirectory + " --score " + prompts, "agent"},
      {"--kv pool --agent none --model " + kModelDirectory + " --score " + prompts, "none"},
      {kModel + "--batch 0 --prompts " + prompts, "--batch"},
      {kModel + "--prompt parallel --prompts " + prompts, "iterated"},
  };
  for (const auto& c : cases) {
    const Ended ended = RunWorker(c.flags);
    EXPECT_GT(ended.status, 0) << c.flags;
    EXPECT_NE(ended.status, 3) << c.flags;
    EXPECT_THAT(ended.output, HasSubstr(c.part)) << c.flags;
  }
}

}  // namespace
}  // namespace kvpool

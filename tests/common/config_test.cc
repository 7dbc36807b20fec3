// Settings from every source, and every way to get them wrong.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <fstream>
#include <limits>
#include <random>

#include "common/address.h"
#include "common/quantity.h"
#include "common/yaml.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

TEST(QuantityTest, Bytes) {
  EXPECT_EQ(*ParseBytes("12 GiB"), Bytes(int64_t{12} << 30));
  EXPECT_EQ(*ParseBytes("512MiB"), 512_MiB);
  EXPECT_FALSE(ParseBytes("4096").ok()) << "of what?";
  EXPECT_EQ(*ParseBytes("0"), 0_B);
  for (const char* bad : {"12 GB", "12 gib", "1.5 GiB", "-1", "", "GiB", "12 GiB ", " 12 GiB",
                          "9000000 TiB", "99999999999999999999", "1e3", "0x10"}) {
    const auto parsed = ParseBytes(bad);
    EXPECT_FALSE(parsed.ok()) << bad;
    EXPECT_THAT(Message(parsed.status()), HasSubstr("B, KiB, MiB, GiB or TiB"));
  }
}

TEST(QuantityTest, Durations) {
  EXPECT_EQ(*ParseDuration("250 ms"), std::chrono::milliseconds(250));
  EXPECT_EQ(*ParseDuration("2s"), std::chrono::seconds(2));
  EXPECT_EQ(*ParseDuration("3 min"), std::chrono::minutes(3));
  for (const char* bad :
       {"250", "2 m", "2 seconds", "-1 s", "9999999999 h", "9223372036854775807 us"}) {
    EXPECT_FALSE(ParseDuration(bad).ok()) << bad;
  }
}

TEST(QuantityTest, WhatIsFormattedIsReadBack) {
  std::mt19937_64 random(7);
  for (int i = 0; i < 1000; ++i) {
    const int shift = static_cast<int>(random() % 62);
    const Bytes bytes(static_cast<int64_t>((random() >> 2) >> shift) << (shift / 2) &
                      std::numeric_limits<int64_t>::max());
    EXPECT_EQ(*ParseBytes(FormatBytes(bytes)), bytes) << FormatBytes(bytes);
    const Duration time = std::chrono::microseconds((random() >> 12) >> (shift % 40));
    EXPECT_EQ(*ParseDuration(FormatDuration(time)), time) << FormatDuration(time);
  }
  EXPECT_EQ(FormatBytes(1536_MiB), "1536 MiB");
  EXPECT_EQ(FormatDuration(std::chrono::seconds(90)), "90 s");
}

std::string YamlError(const std::string& text) {
  const auto node = ParseYaml(text, "f.yaml");
  return node.ok() ? "" : Message(node.status());
}

TEST(YamlTest, TreeWithLines) {
  const auto root =
      ParseYaml("# comment\nname: a\nlist:\n  - x\n  - {k: 'quoted'}\nnone:\n", "f.yaml");
  ASSERT_TRUE(root.ok()) << root.status();
  EXPECT_EQ(*root->Find("name")->AsText(10), "a");
  const YamlNode* list = root->Find("list");
  ASSERT_TRUE(list->CheckList().ok());
  ASSERT_EQ(list->items.size(), 2u);
  EXPECT_EQ(list->items[1].Find("k")->scalar, "quoted");
  EXPECT_EQ(list->items[1].where, "f.yaml:5");
  EXPECT_EQ(root->Find("none")->kind, YamlNode::Kind::kNull);
  EXPECT_EQ(Message(root->Find("none")->AsText(1).status()), "f.yaml:6: the value is missing");
  EXPECT_EQ(Message(root->Require("gone").status()), "f.yaml:2: key \"gone\" is missing");
  EXPECT_TRUE(ParseYaml("", "f.yaml")->CheckKeys({}).ok());
}

TEST(YamlTest, RefusesWhatYamlCppLetsPass) {
  EXPECT_EQ(YamlError("a: 1\nb: 2\na: 3\n"), "f.yaml:3: key \"a\" is there twice");
  EXPECT_THAT(YamlError("x:\n  - a: 1\n    a: 2\n"), HasSubstr("f.yaml:3"));
  EXPECT_THAT(YamlError("a: &x 1\nb: *x\n"), HasSubstr("anchors"));
  EXPECT_THAT(YamlError("a: *x\n"), HasSubstr("f.yaml:1"));
  EXPECT_THAT(YamlError("a: !!int 1\n"), HasSubstr("tags"));
  EXPECT_THAT(YamlError("a: 1\n---\nb: 1\n"), HasSubstr("one document"));
  EXPECT_THAT(YamlError("[a]: 1\n"), HasSubstr("key must be a word"));
  EXPECT_THAT(YamlError("a: [1\n"), HasSubstr("f.yaml:"));
  EXPECT_THAT(YamlError(std::string(3000, '[')), HasSubstr("deep"));
  EXPECT_EQ(YamlError(std::string(limits::kConfigFileBytes, ' ')), "");
  EXPECT_THAT(YamlError(std::string(limits::kConfigFileBytes + 1, ' ')), HasSubstr("larger than"));
}

TEST(YamlTest, ValuesWithinBounds) {
  const auto root = ParseYaml("n: 7\nb: 12 GB\nt: 1 B\n", "f.yaml");
  EXPECT_EQ(*root->Find("n")->AsInteger(0, 7), 7);
  EXPECT_EQ(Message(root->Find("n")->AsInteger(8, 9).status()), "f.yaml:1: 7 is outside 8..9");
  EXPECT_THAT(Message(root->Find("b")->AsBytes(0_B, 1_GiB).status()),
              AllOf(HasSubstr("f.yaml:2"), HasSubstr("KiB, MiB")));
  EXPECT_THAT(Message(root->Find("t")->AsBytes(1_KiB, 1_GiB).status()), HasSubstr("1 KiB..1 GiB"));
  EXPECT_THAT(Message(root->Find("n")->AsText(0).status()), HasSubstr("at most 0"));
  EXPECT_THAT(Message(root->CheckKeys({"n", "b"})),
              AllOf(HasSubstr("f.yaml:3: unknown key \"t\""), HasSubstr("allowed are n, b")));
}

class SettingsTest : public ::testing::Test {
 protected:
  SettingsTest() {
    settings.Add("slab_bytes", "bytes of a slab", &slab, 1_MiB, 1_GiB);
    settings.Add("grace", "how long to wait", &grace, std::chrono::milliseconds(1),
                 std::chrono::seconds(60));
    settings.Add("threads", "kernel threads", &threads, 1, 64);
    settings.Add("prefault", "touch memory early", &prefault);
    settings.Add("listen", "where to listen", &listen,
                 [](const std::string& text) { return ParseHostPort(text).status(); });
    settings.AddChoice("device", "what holds the pool", &device, {"host", "cuda"});
  }
  ~SettingsTest() override {
    if (!file.empty()) unlink(file.c_str());
  }

  std::string WriteFile(const std::string& text) {
    char name[] = "/tmp/kvpool-config-XXXXXX";
    close(mkstemp(name));
    std::ofstream(name) << text;
    return file = name;
  }
  std::string LoadError(const std::vector<std::string>& args,
                        const std::map<std::string, std::string>& environment = {}) {
    const auto startup = settings.Load(args, environment);
    return startup.ok() ? "" : Message(startup.status());
  }

  Bytes slab = 2_MiB;
  Duration grace = std::chrono::milliseconds(250);
  int64_t threads = 2;
  bool prefault = false;
  std::string listen = "127.0.0.1:7600";
  std::string device = "host";
  std::string file;
  Settings settings{"kvpool-test", "A test."};
};

TEST_F(SettingsTest, FlagBeatsEnvironmentBeatsFileBeatsDefault) {
  WriteFile("slab_bytes: 4 MiB\nthreads: 3\ngrace: 1 s\n");
  ASSERT_EQ(LoadError({"--config", file, "--slab-bytes=16 MiB", "--prefault", "true"},
                      {{"KVPOOL_SLAB_BYTES", "8 MiB"}, {"KVPOOL_THREADS", "5"}, {"HOME", "/"}}),
            "");
  EXPECT_EQ(slab, 16_MiB);
  EXPECT_EQ(threads, 5);
  EXPECT_EQ(grace, std::chrono::seconds(1));
  EXPECT_TRUE(prefault);
  EXPECT_EQ(device, "host");
  EXPECT_THAT(settings.ToYaml(), AllOf(HasSubstr("from --slab-bytes)\nslab_bytes: '16 MiB'"),
                                       HasSubstr("from KVPOOL_THREADS"), HasSubstr(":3)\ngrace"),
                                       HasSubstr("from default)\ndevice: 'host'")));
}

TEST_F(SettingsTest, PrintedConfigIsReadBack) {
  ASSERT_EQ(LoadError({"--listen", "[::1]:1", "--device", "cuda"}), "");
  const std::string before = settings.ToYaml();
  slab = 3_MiB, listen = "", device = "";
  ASSERT_EQ(LoadError({}, {{"KVPOOL_CONFIG", WriteFile(before)}}), "");
  EXPECT_EQ(slab, 2_MiB);
  EXPECT_EQ(listen, "[::1]:1");
  EXPECT_EQ(device, "cuda");
}

TEST_F(SettingsTest, ErrorsSayWhereAndWhatIsAllowed) {
  WriteFile("threads: 2\n\nslab_byte: 1 MiB\n");
  EXPECT_EQ(LoadError({"--config", file}),
            file +
                ":3: unknown key \"slab_byte\"; allowed are slab_bytes, grace, threads, "
                "prefault, listen, device");
  const std::pair<const char*, const char*> cases[] = {
      {"slab_bytes: 2 MB\n", ":1: slab_bytes: \"2 MB\" has an unknown unit"},
      {"grace: 0 ms\n", ":1: grace: 0 ms is outside 1 ms..1 min"},
      {"\nthreads: 65\n", ":2: threads: 65 is outside 1..64"},
      {"threads: many\n", "not a whole number"},
      {"threads: [1]\n", "single value"},
      {"threads:\n", "missing"},
      {"prefault: yes\n", "allowed are true, false"},
      {"listen: nowhere\n", "host:port"},
      {"device: tpu\n", "allowed are host, cuda"},
      {"threads: 1\nthreads: 1\n", ":2: key \"threads\" is there twice"},
  };
  for (const auto& [text, error] : cases) {
    std::ofstream(file) << text;
    EXPECT_THAT(LoadError({"--config", file}), HasSubstr(error)) << text;
  }
  EXPECT_THAT(LoadError({"--config", "/none.yaml"}), HasSubstr("/none.yaml: cannot be read"));
  EXPECT_THAT(LoadError({}, {{"KVPOOL_THREADS", "0"}}), HasSubstr("environment KVPOOL_THREADS"));
  EXPECT_THAT(LoadError({"--threads", "0"}), HasSubstr("--threads: threads: 0 is outside"));
  EXPECT_THAT(LoadError({"--thread", "1"}), HasSubstr("--thread"));
  EXPECT_THAT(LoadError({"--threads", "1", "--threads", "2"}), HasSubstr("--threads"));
  EXPECT_THAT(LoadError({"stray"}), HasSubstr("stray"));
}

TEST_F(SettingsTest, AnOverriddenErrorIsAnError) {
  EXPECT_THAT(LoadError({"--threads", "2"}, {{"KVPOOL_THREADS", "0"}}),
              HasSubstr("KVPOOL_THREADS"));
}

TEST_F(SettingsTest, PrintsInsteadOfRunning) {
  EXPECT_EQ(settings.Load({}, {})->output, "");
  EXPECT_THAT(settings.Load({"--version"}, {})->output, HasSubstr("kvpool-test 0."));
  EXPECT_THAT(settings.Load({"--help"}, {})->output,
              AllOf(HasSubstr("--slab-bytes"), HasSubstr("[2 MiB] (1 MiB..1 GiB)")));
  EXPECT_THAT(settings.Load({"--print-config"}, {})->output, HasSubstr("threads: '2'"));
  EXPECT_THAT(settings.Load({"--print-settings"}, {})->output,
              HasSubstr("| `slab_bytes` | 2 MiB | 1 MiB..1 GiB | bytes of a slab |"));
}

}  // namespace
}  // namespace kvpool

// TLS between real processes: an agent that gets its leases over it, kvpoolctl over HTTPS, a
// manager on an etcd with TLS; and all who do not fit: the wrong CA, the wrong name, no
// certificate, no TLS.
//
// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "common/http_client.h"
#include "tests/common/certificates.h"
#include "tests/integration/decode_load.h"
#include "tests/integration/etcd_server.h"
#include "tests/integration/process.h"

namespace kvpool {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using Args = std::vector<std::string>;

std::string ReadAll(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

struct Outcome {
  int code;
  std::string output;  // stdout and stderr
};

class TlsProcessesTest : public ::testing::Test {
 protected:
  TlsProcessesTest() {
    for (const char* token : {"agent.token", "operator.token"}) {
      std::ofstream(dir_ / token) << "kvp_" << token << "\n";
      chmod((dir_ / token).c_str(), 0600);
    }
  }

  Outcome Run(const std::string& program, const Args& args) {
    const std::string out = dir_ / ("out-" + std::to_string(++runs_));
    const int code = Process(program, args, out).Wait();
    return {code, ReadAll(out)};
  }
  Outcome Ctl(Args args) {
    args.insert(args.begin(), {"--token-file", dir_ / "operator.token"});
    return Run("kvpoolctl", args);
  }
  // As the operator who does everything right.
  Outcome SecureCtl(Args args) {
    args.insert(args.begin(), {"--server", "https://" + Http(), "--ca", ca_.file()});
    return Ctl(args);
  }
  static Args TlsFlags(const TlsFiles& files) {
    return {"--tls-certificate", files.certificate, "--tls-key", files.key, "--tls-ca", files.ca};
  }

  void StartManager(const Args& more) {
    Args args{"--agents",
              "127.0.0.1:" + std::to_string(agents_port_),
              "--http",
              Http(),
              "--agent-token-file",
              dir_ / "agent.token",
              "--operator-token-file",
              dir_ / "operator.token",
              "--learning",
              "1 s",
              "--database",
              dir_ / "manager.db"};
    args.insert(args.end(), more.begin(), more.end());
    manager_ = Process("kvpool-manager", args, dir_ / "manager.log");
  }
  Args ManagerTls() const {
    Args args = TlsFlags(server_);
    args.insert(args.end(),
                {"--http-tls-certificate", server_.certificate, "--http-tls-key", server_.key});
    return args;
  }
  void StartSecureManager() {
    StartManager(ManagerTls());
    ASSERT_TRUE(Eventually([this] {
      return SecureCtl({"get", "tenants"}).code == 0;
    })) << ReadAll(dir_ / "manager.log");
  }
  Process StartAgent(const std::string& name, const Args& more) {
    const uint16_t http = FreePort();
    agent_http_ = {"127.0.0.1", http};
    Args args{"--name",
              name,
              "--socket",
              dir_ / (name + ".sock"),
              "--manager",
              manager_host_ + ":" + std::to_string(agents_port_),
              "--manager-token-file",
              dir_ / "agent.token",
              "--http",
              ToString(agent_http_),
              "--pool",
              "16 MiB",
              "--reserve-slabs",
              "1"};
    args.insert(args.end(), more.begin(), more.end());
    return Process("kvpool-agent", args, dir_ / (name + ".log"));
  }
  bool LogComesToSay(const std::string& name, const std::string& text) {
    return Eventually(
        [&] { return ReadAll(dir_ / (name + ".log")).find(text) != std::string::npos; });
  }
  std::string Page(const HostPort& server) {
    const auto page =
        HttpCall(server, {.path = "/metrics"}, std::chrono::seconds(5), operator_tls_.get());
    return page.ok() ? page->body : page.status().ToString();
  }
  std::string Http() const { return http_host_ + ":" + std::to_string(http_port_); }

  TempDir dir_;
  const uint16_t agents_port_ = FreePort(), http_port_ = FreePort();
  const TestCa ca_{dir_ / "", "ca"}, other_{dir_ / "", "other"};
  const TlsFiles server_ =
      ca_.Issue("server", {.common_name = "manager", .alternatives = "DNS:localhost,IP:127.0.0.1"});
  const std::shared_ptr<TlsSource> operator_tls_ = *TlsSource::Open({.ca = ca_.file()});
  std::string manager_host_ = "localhost", http_host_ = "127.0.0.1";  // in settings
  HostPort agent_http_;
  int runs_ = 0;
  Process manager_;
};

TEST_F(TlsProcessesTest, ALeaseReachesTheAgentAndAnOperatorTheManager) {
  StartSecureManager();
  manager_host_ = "127.0.0.1";
  const TlsFiles own = ca_.Issue("gpu-0", {.common_name = "gpu-0", .alternatives = "IP:127.0.0.1"});
  Args flags = TlsFlags(own);
  flags.insert(flags.end(), {"--http-tls-certificate", own.certificate, "--http-tls-key", own.key,
                             "--tls-manager-name", "localhost"});
  const Process agent = StartAgent("gpu-0", flags);
  ASSERT_TRUE(LogComesToSay("gpu-0", "registered at the manager"));
  const std::string tenants = dir_ / "tenants.yaml";
  std::ofstream(tenants)
      << "version: 1\ntenants: [{name: chat, guaranteed: 8 MiB, limit: 8 MiB}]\n";
  ASSERT_EQ(SecureCtl({"apply", "-f", tenants}).code, 0);
  Outcome token = SecureCtl({"token", "create", "chat"});
  ASSERT_EQ(token.code, 0) << token.output;
  token.output.resize(token.output.find('\n'));
  const DecodeLoad load(dir_ / "gpu-0.sock", token.output, 64);
  EXPECT_TRUE(Eventually([&] { return load.steps() > 10; })) << load.status();
  EXPECT_TRUE(Eventually([&] {
    return Page(agent_http_).find("kvpool_agent_tenant_lease_bytes{tenant=\"chat\"} 0\n") ==
           std::string::npos;
  }));

  const std::string agent_page = Page(agent_http_);
  EXPECT_THAT(agent_page, HasSubstr("kvpool_agent_certificate_expiry_timestamp_seconds{"
                                    "file=\"ca\",use=\"manager\"}"));
  EXPECT_THAT(agent_page, HasSubstr("{file=\"certificate\",use=\"http\"}"));
  const std::string manager_page = Page({"127.0.0.1", http_port_});
  for (const char* series : {"file=\"certificate\",use=\"agents\"", "file=\"ca\",use=\"agents\"",
                             "file=\"certificate\",use=\"http\""}) {
    EXPECT_THAT(manager_page, HasSubstr("kvpool_manager_certificate_expiry_timestamp_seconds{" +
                                        std::string(series) + "}"));
  }
}

TEST_F(TlsProcessesTest, AnAgentThatDoesNotFitIsRefusedAndBothLogsSayWhy) {
  StartSecureManager();
  struct Misfit {
    TlsFiles files;
    std::string agent_says, manager_says;
  };
  TlsFiles foreign = other_.Issue("foreign", {.common_name = "foreign"});
  foreign.ca = ca_.file();
  TlsFiles doubting = ca_.Issue("doubting", {.common_name = "doubting"});
  doubting.ca = other_.file();
  const std::map<std::string, Misfit> misfits{
      {"thief",
       {ca_.Issue("gpu-0", {.common_name = "gpu-0"}), "tls_certificate is for another agent",
        "the agent's certificate is for another name"}},
      {"foreign", {foreign, "does not know the CA", "signed by no CA that is known here"}},
      {"doubting", {doubting, "signed by another CA", "hung up after the TLS handshake"}},
      {"expired",
       {ca_.Issue("expired", {.common_name = "expired", .ends_s = -60}),
        "the certificate shown to the other side has expired", "certificate verify failed"}}};
  for (const auto& [name, misfit] : misfits) {
    const Process agent = StartAgent(name, TlsFlags(misfit.files));
    EXPECT_TRUE(LogComesToSay(name, misfit.agent_says)) << ReadAll(dir_ / (name + ".log"));
    EXPECT_TRUE(LogComesToSay("manager", misfit.manager_says)) << name;
  }
  {
    const Process agent = StartAgent("lost", [&] {
      Args flags = TlsFlags(ca_.Issue("lost", {.common_name = "lost"}));
      flags.insert(flags.end(), {"--tls-manager-name", "elsewhere"});
      return flags;
    }());
    EXPECT_TRUE(LogComesToSay("lost", "for other names than the one dialled"));
  }
  {
    const Process agent = StartAgent("plain", {});
    EXPECT_TRUE(LogComesToSay("plain", "set tls_certificate, tls_key and tls_ca"));
    EXPECT_TRUE(LogComesToSay("manager", "does not speak TLS"));
  }
  const Outcome agents = SecureCtl({"-o", "json", "get", "agents"});
  EXPECT_EQ(agents.code, 0);
  EXPECT_THAT(agents.output, HasSubstr("\"agents\":[]"));
  const Process good = StartAgent("good", TlsFlags(ca_.Issue("good", {.common_name = "good"})));
  EXPECT_TRUE(LogComesToSay("good", "registered at the manager"));
}

TEST_F(TlsProcessesTest, AnAgentWithTlsSaysThatItsManagerHasNone) {
  StartManager({});
  ASSERT_TRUE(LogComesToSay("manager", "manager started"));
  const Process agent = StartAgent("a", TlsFlags(ca_.Issue("a", {.common_name = "a"})));
  EXPECT_TRUE(LogComesToSay("a", "no manager"));
  EXPECT_THAT(ReadAll(dir_ / "a.log"), HasSubstr("TLS"));
  EXPECT_TRUE(LogComesToSay("manager", "not our protocol")) << ReadAll(dir_ / "manager.log");
}

TEST_F(TlsProcessesTest, OperatorsAreToldWhatDoesNotFit) {
  StartSecureManager();
  const Outcome plain = Ctl({"--server", Http(), "get", "tenants"});
  EXPECT_EQ(plain.code, 1);
  EXPECT_THAT(plain.output, HasSubstr("https://"));
  const Outcome untrusted =
      Ctl({"--server", "https://" + Http(), "--ca", other_.file(), "get", "tenants"});
  EXPECT_EQ(untrusted.code, 5);
  EXPECT_THAT(untrusted.output, HasSubstr("signed by another CA"));
  const Outcome by_system = Ctl({"--server", "https://" + Http(), "get", "tenants"});
  EXPECT_EQ(by_system.code, 5);
  const Outcome half = Ctl({"--server", Http(), "--ca", ca_.file(), "get", "tenants"});
  EXPECT_EQ(half.code, 2);
  EXPECT_THAT(half.output, HasSubstr("write https:// before each"));
  const Outcome mixed = Ctl({"--server", "https://" + Http() + "," + Http(), "get", "tenants"});
  EXPECT_EQ(mixed.code, 2);
  EXPECT_EQ(Ctl({"--server", "https://" + Http(), "--ca", dir_ / "none", "get", "tenants"}).code,
            2);
}

TEST_F(TlsProcessesTest, ANewCertificateNeedsNoRestart) {
  StartSecureManager();
  other_.Issue("server", {.common_name = "m", .alternatives = "IP:127.0.0.1"});
  EXPECT_EQ(SecureCtl({"get", "tenants"}).code, 5);
  EXPECT_EQ(Ctl({"--server", "https://" + Http(), "--ca", other_.file(), "get", "tenants"}).code,
            0);
  EXPECT_TRUE(LogComesToSay("manager", "certificates read anew"));
}

TEST_F(TlsProcessesTest, AManagerKeepsItsRecordsInAnEtcdWithTls) {
  if (!EtcdServer::Installed()) GTEST_SKIP() << EtcdServer::kProgram << " is not installed";
  const TlsFiles client = ca_.Issue("client", {.common_name = "client"});
  const EtcdServer etcd(server_, *TlsSource::Open(client));
  ASSERT_TRUE(etcd.healthy());
  Args flags = ManagerTls();
  flags.insert(flags.end(), {"--store", "etcd", "--etcd-endpoints",
                             "https://" + ToString(etcd.address()), "--etcd-ca", ca_.file(),
                             "--etcd-certificate", client.certificate, "--etcd-key", client.key});
  StartManager(flags);
  EXPECT_TRUE(Eventually([this] {
    return SecureCtl({"get", "tenants"}).code == 0;
  })) << ReadAll(dir_ / "manager.log");
  EXPECT_THAT(Page({"127.0.0.1", http_port_}), HasSubstr("{file=\"ca\",use=\"etcd\"}"));
}

TEST_F(TlsProcessesTest, SettingsThatDoNotFitTogetherEndTheStart) {
  const TlsFiles agent = ca_.Issue("a", {.common_name = "a"});
  const Args tls = TlsFlags(agent);
  struct Start {
    std::string program;
    Args args;
    std::string says;
  };
  const std::vector<Start> starts{
      {"kvpool-agent", {"--tls-ca", agent.ca}, "set all of tls_certificate, tls_key, tls_ca"},
      {"kvpool-agent", {"--http-tls-key", agent.key}, "http_tls_certificate is not"},
      {"kvpool-agent", {"--tls-manager-name", "m"}, "tls_manager_name is set without TLS"},
      {"kvpool-agent", tls, "an address cannot be checked"},
      {"kvpool-manager",
       {"--tls-certificate", agent.certificate, "--tls-key", agent.key},
       "tls_ca is not"},
      {"kvpool-manager", {"--http-tls-certificate", agent.certificate}, "http_tls_key is not"},
      {"kvpool-manager", {"--etcd-endpoints", "https://e:2379"}, "etcd_ca is not set"},
      {"kvpool-manager", {"--etcd-ca", agent.ca}, "write https:// before each"},
      {"kvpool-manager", {"--etcd-certificate", agent.certificate}, "etcd_key is not"},
      {"kvpool-manager", {"--etcd-endpoints", "https://e:2379,f:2379"}, "mixes https://"},
      {"kvpool-manager", {"--etcd-user", "root"}, "etcd_password_file is not"}};
  for (const Start& start : starts) {
    Args args = start.args;
    args.push_back("--print-config");
    const Outcome outcome = Run(start.program, args);
    EXPECT_EQ(outcome.code, 2) << start.says;
    EXPECT_THAT(outcome.output, HasSubstr(start.says));
  }
  // What is in the files is looked at by a real start.
  chmod(agent.key.c_str(), 0644);
  Args args = tls;
  args.insert(args.end(), {"--agent-token-file", dir_ / "agent.token"});
  const Outcome open = Run("kvpool-manager", args);
  EXPECT_EQ(open.code, 2);
  EXPECT_THAT(open.output, AllOf(HasSubstr("a.key"), HasSubstr("chmod")));
}

TEST_F(TlsProcessesTest, WhatOtherMachinesReachWithoutTlsIsWarnedOf) {
  http_host_ = "0.0.0.0";
  StartManager({});
  EXPECT_TRUE(LogComesToSay("manager", "manager started"));
  EXPECT_THAT(ReadAll(dir_ / "manager.log"),
              AllOf(HasSubstr("no TLS on an address that other machines reach"),
                    HasSubstr("setting=http"), Not(HasSubstr("setting=agents"))));
}

}  // namespace
}  // namespace kvpool

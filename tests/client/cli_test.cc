// kvpoolctl as a process against kvpool-manager as a process, with an agent that has no memory:
// every command, every exit code, a lease and its revocation end to end.
//
// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <fstream>
#include <sstream>

#include "common/address.h"
#include "tests/integration/process.h"
#include "tests/manager/fake_agent.h"

namespace kvpool {
namespace {

namespace json = boost::json;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

constexpr int64_t kMiB = 1 << 20;

std::string ReadAll(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

struct Outcome {
  int code;
  std::string output;  // stdout and stderr
};

class CliTest : public ::testing::Test {
 protected:
  CliTest() {
    WriteFile("agent.token", "agent-token\n");
    WriteFile("operator.token", "operator-token\n");
    StartManager();
  }

  void WriteFile(const std::string& name, const std::string& text) {
    std::ofstream(folder_ / name) << text;
    std::filesystem::permissions(
        folder_ / name, std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
  }

  // Both addresses are picked by the system; the log names them.
  void StartManager() {
    const std::string log = folder_ / "manager.log";
    std::filesystem::remove(log);
    manager_ =
        Process("kvpool-manager",
                {"--agents", "127.0.0.1:0", "--http", "127.0.0.1:0", "--database",
                 folder_ / "manager.db", "--agent-token-file", folder_ / "agent.token",
                 "--operator-token-file", folder_ / "operator.token", "--log-format", "json"},
                log);
    std::string line;
    ASSERT_TRUE(Eventually([&] {
      const std::string text = ReadAll(log);
      const size_t at = text.find("manager started");
      if (at == std::string::npos || text.find('\n', at) == std::string::npos) return false;
      const size_t begin = text.rfind('\n', at) + 1;
      line = text.substr(begin, text.find('\n', at) - begin);
      return true;
    })) << ReadAll(log);
    const json::value started = json::parse(line);
    agents_ = std::string(started.at("agents").as_string());
    http_ = std::string(started.at("http").as_string());
  }

  // kvpoolctl with server and token set.
  Outcome Ctl(std::vector<std::string> args) {
    args.insert(args.begin(), {"--server", http_, "--token-file", folder_ / "operator.token"});
    return Bare(args);
  }
  Outcome Bare(const std::vector<std::string>& args) {
    const std::string out = folder_ / ("out" + std::to_string(++runs_));
    Process process("kvpoolctl", args, out);
    const int code = process.Wait();
    return {code, ReadAll(out)};
  }
  json::value CtlJson(std::vector<std::string> args) {
    args.insert(args.end(), {"-o", "json"});
    const Outcome outcome = Ctl(args);
    EXPECT_EQ(outcome.code, 0) << outcome.output;
    return json::parse(outcome.output);
  }
  void Apply(const std::string& tenants) {
    WriteFile("tenants.yaml", "version: 1\ntenants:\n" + tenants);
    const Outcome outcome = Ctl({"apply", "-f", folder_ / "tenants.yaml"});
    EXPECT_EQ(outcome.code, 0) << outcome.output;
  }
  FakeAgentOptions Agent(const std::string& name) {
    return {.manager = *ParseAddress(agents_), .name = name};
  }

  TempDir folder_;
  Process manager_;
  std::string agents_, http_;
  int runs_ = 0;
};

TEST_F(CliTest, ApplyGetSetDescribeDelete) {
  WriteFile("tenants.yaml", R"(version: 1
tenants:
  - name: chat
    guaranteed: 8 MiB
    limit: 24 MiB
    policy: {name: scissorhands, budget: 512}
  - {name: batch, guaranteed: 0, limit: 12 MiB}
)");
  Outcome outcome = Ctl({"apply", "-f", folder_ / "tenants.yaml"});
  EXPECT_EQ(outcome.code, 0);
  EXPECT_EQ(outcome.output,
            "tenant chat created (revision 1)\ntenant batch created (revision 1)\n");
  EXPECT_THAT(Ctl({"apply", "-f", folder_ / "tenants.yaml"}).output,
              HasSubstr("tenant chat unchanged (revision 1)"));

  outcome = Ctl({"get", "tenants"});
  EXPECT_THAT(outcome.output, AllOf(StartsWith("NAME"), HasSubstr("24 MiB"),
                                    HasSubstr("scissorhands(budget=512,"), HasSubstr("batch")));
  EXPECT_THAT(Ctl({"get", "tenants", "chat"}).output, Not(HasSubstr("batch")));

  outcome = Ctl({"set", "tenant", "chat", "--limit", "20 MiB", "--policy", "streaming", "--param",
                 "recent=60"});
  EXPECT_EQ(outcome.code, 0) << outcome.output;
  EXPECT_EQ(outcome.output, "tenant chat updated (revision 2)\n");
  const json::value chat = CtlJson({"describe", "tenant", "chat"});
  EXPECT_EQ(chat.at("limit").as_int64(), 20 * kMiB);
  EXPECT_EQ(chat.at("guaranteed").as_int64(), 8 * kMiB);
  EXPECT_EQ(chat.at("policy").at("recent").as_int64(), 60);
  EXPECT_THAT(chat.at("reclaims").as_array(), IsEmpty());

  EXPECT_EQ(Ctl({"delete", "tenant", "batch"}).output, "tenant batch deleted\n");
  EXPECT_EQ(CtlJson({"get", "tenants"}).at("tenants").as_array().size(), 1u);
}

TEST_F(CliTest, SetChangesWhatItNamesAndNothingElse) {
  Apply("- {name: chat, guaranteed: 4 MiB, limit: 10 MiB, floors: {gpu-0: 2 MiB, gpu-1: 1 MiB}}\n");
  EXPECT_EQ(Ctl({"set", "tenant", "chat", "--weight", "3", "--priority", "7", "--borrowing", "off",
                 "--grace-cold", "250 ms", "--over-deadline", "preempt", "--floor", "gpu-0=0",
                 "--floor", "gpu-2=2 MiB"})
                .code,
            0);
  const json::value tenant = CtlJson({"get", "tenant", "chat"});
  EXPECT_EQ(tenant.at("guaranteed"), 4 << 20);
  EXPECT_EQ(tenant.at("limit"), 10 << 20);
  EXPECT_EQ(tenant.at("weight"), 3);
  EXPECT_EQ(tenant.at("priority"), 7);
  EXPECT_EQ(tenant.at("borrowing"), "off");
  EXPECT_EQ(json::serialize(tenant.at("grace")), R"({"cold":"250 ms","running":"15 s"})");
  EXPECT_EQ(tenant.at("over_deadline"), "preempt");
  EXPECT_EQ(json::serialize(tenant.at("floors")), R"({"gpu-1":1048576,"gpu-2":2097152})");
  const std::string text = Ctl({"describe", "tenant", "chat"}).output;
  EXPECT_THAT(text, HasSubstr("Floors:       gpu-1 1 MiB, gpu-2 2 MiB\n"));
  EXPECT_THAT(text, HasSubstr("Grace:        cold 250 ms, running 15 s, then preempt\n"));
}

TEST_F(CliTest, ExitCodes) {
  Apply("- {name: chat, guaranteed: 0, limit: 10 MiB}\n");
  // 1: it failed.
  EXPECT_EQ(Bare({"--server", http_, "get", "tenants"}).code, 1);
  EXPECT_THAT(Bare({"--server", http_, "--token", "wrong", "get", "tenants"}).output,
              StartsWith("error: a valid operator token is needed"));
  EXPECT_EQ(Ctl({"set", "tenant", "chat", "--guaranteed", "11 MiB"}).code, 1);
  EXPECT_EQ(Bare({"--token-file", folder_ / "none", "get", "tenants"}).code, 1);
  // 2: wrong usage.
  for (const std::vector<std::string>& args : std::vector<std::vector<std::string>>{
           {},
           {"fly"},
           {"get"},
           {"get", "cats"},
           {"get", "tenants", "--fast"},
           {"get", "tenants", "-o", "xml"},
           {"set", "tenant", "chat"},
           {"set", "tenant", "chat", "--limit", "12 GB"},
           {"set", "tenant", "chat", "--policy", "best"},
           {"set", "tenant", "chat", "--floor", "gpu-0"},
           {"set", "tenant", "chat", "--floor", "gpu-0=much"},
           {"set", "tenant", "chat", "--weight", "0"},
           {"set", "tenant", "chat", "--priority", "10"},
           {"set", "tenant", "chat", "--borrowing", "maybe"},
           {"set", "tenant", "chat", "--grace-cold", "5"},
           {"set", "tenant", "chat", "--over-deadline", "kill"},
           {"set", "tenant", "chat", "--param", "budget=many"},
           {"set", "tenant", "chat", "--param", "budget=512"},
           {"set", "tenant", "chat", "--policy", "adakv", "--param", "floor=2"},
           {"set", "tenant", "chat", "--policy", "corm", "--param", "threshold=often"},
           {"apply"},
           {"token"},
           {"drain", "tenant", "chat"},
           {"get", "tenants", "--watch", "--interval", "1 us"},
           {"--server", "nowhere", "get", "tenants"},
           {"top", "--interval", "2"}}) {
    const Outcome outcome = Ctl(args);
    EXPECT_EQ(outcome.code, 2) << outcome.output;
    EXPECT_THAT(outcome.output, StartsWith("error: "));
  }
  // 3: not found.
  EXPECT_EQ(Ctl({"get", "tenant", "none"}).code, 3);
  EXPECT_EQ(Ctl({"get", "agent", "none"}).code, 3);
  EXPECT_EQ(Ctl({"describe", "tenant", "../agents"}).code, 3);
  EXPECT_EQ(Ctl({"delete", "tenant", "none"}).code, 3);
  EXPECT_EQ(Ctl({"token", "create", "none"}).code, 3);
  EXPECT_EQ(Ctl({"token", "revoke", "chat", "abc"}).code, 3);
  EXPECT_THAT(Ctl({"set", "tenant", "none", "--limit", "1 MiB"}).output,
              HasSubstr("kvpoolctl apply"));
  // 4: conflict.
  EXPECT_EQ(Ctl({"set", "tenant", "chat", "--limit", "1 MiB", "--if-revision", "7"}).code, 4);
  FakeAgent agent(Agent("gpu-0"));
  ASSERT_EQ(agent.Connect(), "ok");
  ASSERT_TRUE(agent.Exchange().ok());
  EXPECT_EQ(Ctl({"forget-agent", "gpu-0"}).code, 4);
  // 5: unreachable.
  manager_ = Process();
  const Outcome outcome = Ctl({"get", "tenants"});
  EXPECT_EQ(outcome.code, 5);
  EXPECT_THAT(outcome.output, HasSubstr("is kvpool-manager running?"));
  EXPECT_EQ(Bare({"--version"}).code, 0);
  EXPECT_THAT(Bare({"policies"}).output, HasSubstr("corm: CORM")) << "asks nobody";
  EXPECT_EQ(json::parse(Bare({"-o", "json", "policies"}).output).at("policies").at(0).at("name"),
            "full");
  EXPECT_THAT(Bare({"--help"}).output, HasSubstr("Exit codes:"));
}

TEST_F(CliTest, BadTenantsFilesChangeNothing) {
  const auto apply = [&](const std::string& text, int code) {
    WriteFile("bad.yaml", text);
    const Outcome outcome = Ctl({"apply", "-f", folder_ / "bad.yaml"});
    EXPECT_EQ(outcome.code, code);
    return outcome.output;
  };
  EXPECT_THAT(apply("version: 1\ntenants:\n- {name: a, guaranteed: 0, limit: 9 MB}", 2),
              HasSubstr("bad.yaml:3"));
  EXPECT_THAT(
      apply("version: 1\ntenants:\n- {name: a, guaranteed: 0, limit: 9 MiB, color: red}", 2),
      HasSubstr("unknown key \"color\""));
  FakeAgent agent(Agent("gpu-0"));  // 40 MiB
  ASSERT_EQ(agent.Connect(), "ok");
  EXPECT_THAT(apply("version: 1\ntenants:\n- {name: a, guaranteed: 30 MiB, limit: 30 MiB}\n"
                    "- {name: b, guaranteed: 11 MiB, limit: 30 MiB}",
                    1),
              HasSubstr("a 30 MiB + b 11 MiB = 41 MiB, but the agents' pools hold 40 MiB"));
  EXPECT_EQ(Ctl({"apply", "-f", folder_ / "none.yaml"}).code, 2);
  EXPECT_THAT(CtlJson({"get", "tenants"}).at("tenants").as_array(), IsEmpty());
}

TEST_F(CliTest, ALeaseAndItsRevocation) {
  Apply("- {name: chat, guaranteed: 0, limit: 40 MiB}\n");
  FakeAgent agent(Agent("gpu-0"));  // 20 slabs of 2 MiB
  ASSERT_EQ(agent.Connect(), "ok");
  ASSERT_TRUE(agent.Exchange().ok());
  agent.tenant("chat").wanted = 20;
  ASSERT_TRUE(agent.Exchange().ok());
  EXPECT_EQ(agent.tenant("chat").lease, 20u);
  agent.tenant("chat").held = 20;
  agent.tenant("chat").used = 33 * kMiB;

  EXPECT_EQ(Ctl({"set", "tenant", "chat", "--limit", "20 MiB"}).code, 0);
  ASSERT_TRUE(agent.Exchange().ok());
  EXPECT_EQ(agent.tenant("chat").lease, 10u);
  EXPECT_THAT(Ctl({"describe", "tenant", "chat"}).output,
              AllOf(HasSubstr("40 MiB (20 MiB above the limit"), HasSubstr("33 MiB")));
  agent.tenant("chat").held = 10;
  agent.tenant("chat").used = 17 * kMiB;
  agent.tenant("chat").charged = 9;
  agent.AddReclaim("chat", 16 * kMiB);
  ASSERT_TRUE(agent.Exchange().ok());
  EXPECT_EQ(CtlJson({"get", "tenants", "chat"}).at("leased").as_int64(), 20 * kMiB);
  EXPECT_EQ(CtlJson({"get", "tenants", "chat"}).at("charged").as_int64(), 18 * kMiB);
  EXPECT_EQ(CtlJson({"get", "agents", "gpu-0"}).at("charged").as_int64(), 18 * kMiB);
  for (const std::vector<std::string>& args : std::vector<std::vector<std::string>>{
           {"get", "tenants"}, {"get", "agents"}, {"describe", "tenant", "chat"}, {"top"}}) {
    const std::string shown = Ctl(args).output;
    EXPECT_THAT(shown, AnyOf(HasSubstr("CHARGED"), HasSubstr("Charged:")));
    EXPECT_THAT(shown, HasSubstr("18 MiB"));
  }
  EXPECT_THAT(
      Ctl({"describe", "tenant", "chat"}).output,
      AllOf(HasSubstr("compaction"), HasSubstr("lease-shrink"), HasSubstr("16 MiB"),
            HasSubstr("COUNT"), HasSubstr("0.500"), HasSubstr("0.250"), HasSubstr("0.125")));
  EXPECT_THAT(Ctl({"describe", "agent", "gpu-0"}).output,
              AllOf(HasSubstr("connected"), HasSubstr("chat")));
  EXPECT_THAT(Ctl({"get", "agents"}).output, HasSubstr("gpu-0"));

  agent.Disconnect();
  EXPECT_TRUE(Eventually([&] { return Ctl({"forget-agent", "gpu-0"}).code == 0; }));
}

TEST_F(CliTest, BudgetsThatAreNotWholeSlabsAreSaid) {
  WriteFile("tenants.yaml", "version: 1\ntenants:\n- {name: chat, guaranteed: 0, limit: 5 MiB}\n");
  EXPECT_THAT(Ctl({"apply", "-f", folder_ / "tenants.yaml"}).output, Not(HasSubstr("note")))
      << "no agent has said how large a slab is";
  FakeAgent agent(Agent("gpu-0"));  // slabs of 2 MiB
  ASSERT_EQ(agent.Connect(), "ok");
  EXPECT_EQ(Ctl({"apply", "-f", folder_ / "tenants.yaml"}).output,
            "tenant chat unchanged (revision 1)\n"
            "  note: limit 5 MiB is 2 slabs of 2 MiB = 4 MiB\n");
  EXPECT_THAT(Ctl({"describe", "tenant", "chat"}).output,
              HasSubstr("5 MiB (effective 4 MiB: whole slabs)"));
  EXPECT_EQ(Ctl({"set", "tenant", "chat", "--limit", "7 MiB", "--guaranteed", "3 MiB"}).output,
            "tenant chat updated (revision 2)\n"
            "  note: guaranteed 3 MiB is 1 slab of 2 MiB = 2 MiB\n"
            "  note: limit 7 MiB is 3 slabs of 2 MiB = 6 MiB\n");
  const json::value answer = CtlJson({"set", "tenant", "chat", "--limit", "8 MiB"});
  EXPECT_EQ(answer.at("tenants").at(0).at("notes").as_array().size(), 1u);
  EXPECT_EQ(CtlJson({"get", "tenants", "chat"}).at("effective").at("guaranteed").as_int64(),
            2 * kMiB);
  EXPECT_EQ(CtlJson({"get", "tenants", "chat"}).at("effective").at("limit").as_int64(), 8 * kMiB);
}

TEST_F(CliTest, TokensAndTop) {
  Apply("- {name: chat, guaranteed: 0, limit: 40 MiB}\n");
  const Outcome token = Ctl({"token", "create", "chat"});
  EXPECT_THAT(token.output, StartsWith("kvp_"));
  const std::string id(CtlJson({"get", "tenants", "chat"}).at("tokens").at(0).as_string().c_str());
  EXPECT_EQ(Ctl({"token", "revoke", "chat", id}).output,
            "token " + id + " of tenant chat revoked\n");
  EXPECT_THAT(CtlJson({"get", "tenants", "chat"}).at("tokens").as_array(), IsEmpty());

  const Outcome top = Ctl({"top"});  // not a terminal: one plain table
  EXPECT_EQ(top.code, 0);
  EXPECT_THAT(top.output,
              AllOf(HasSubstr("USED OF LIMIT"), HasSubstr("chat"), Not(HasSubstr("\x1b"))));
  EXPECT_EQ(CtlJson({"top", "--once"}).at("tenants").as_array().size(), 1u);
}

TEST_F(CliTest, OperatorsHaveScopes) {
  Apply("- {name: chat, guaranteed: 0, limit: 40 MiB}\n");
  const Outcome token = Ctl({"operator", "create", "ci", "--scope", "read"});
  EXPECT_THAT(token.output, StartsWith("kvp_"));
  WriteFile("ci.token", token.output);
  const auto as_ci = [&](std::vector<std::string> args) {
    args.insert(args.begin(), {"--server", http_, "--token-file", folder_ / "ci.token"});
    return Bare(args);
  };
  EXPECT_EQ(as_ci({"get", "tenants"}).code, 0);
  const Outcome refused = as_ci({"set", "tenant", "chat", "--limit", "1 MiB"});
  EXPECT_EQ(refused.code, 1);
  EXPECT_THAT(refused.output,
              AllOf(HasSubstr("takes the scope operate"), HasSubstr("\"ci\" has read")));
  EXPECT_THAT(Ctl({"operator", "list"}).output, AllOf(StartsWith("NAME"), HasSubstr("ci    read")));
  EXPECT_EQ(CtlJson({"operator", "list"}).at("operators").at(0).at("scope"), "read");
  EXPECT_EQ(Ctl({"operator", "revoke", "ci"}).output, "operator ci revoked\n");
  EXPECT_EQ(as_ci({"get", "tenants"}).code, 1);
  EXPECT_EQ(Ctl({"operator", "revoke", "ci"}).code, 3);
  EXPECT_EQ(Ctl({"operator", "create", "ci"}).code, 2) << "no scope";
  EXPECT_EQ(Ctl({"operator", "create", "ci", "--scope", "root"}).code, 2);
}

TEST_F(CliTest, TheAuditLogSaysWhoChangedWhat) {
  Apply("- {name: chat, guaranteed: 0, limit: 10 MiB}\n- {name: other, guaranteed: 0, limit: 0}\n");
  Ctl({"set", "tenant", "chat", "--limit", "12 MiB", "--policy", "streaming"});
  const std::string text = Ctl({"audit", "--tenant", "chat"}).output;
  EXPECT_THAT(text,
              AllOf(HasSubstr("config  tenant.create  chat"), Not(HasSubstr("other")),
                    HasSubstr("limit 10 MiB -> 12 MiB"), HasSubstr("policy.name full -> streaming"),
                    HasSubstr("policy.recent - -> 252")));
  EXPECT_EQ(CtlJson({"audit", "--limit", "1"}).at("entries").at(0).at("action"), "tenant.update");
  EXPECT_EQ(CtlJson({"audit"}).at("entries").as_array().size(), 3u);
  EXPECT_EQ(Ctl({"audit", "--limit", "0"}).code, 2);
  EXPECT_EQ(Ctl({"audit", "--tenant", "a b"}).code, 3);
}

TEST_F(CliTest, ADryRunChangesNothingAndSaysWhoWouldLose) {
  Apply("- {name: chat, guaranteed: 0, limit: 40 MiB}\n");
  FakeAgent agent(Agent("gpu-0"));  // 20 slabs of 2 MiB
  ASSERT_EQ(agent.Connect(), "ok");
  ASSERT_TRUE(agent.Exchange().ok());
  agent.tenant("chat").wanted = agent.tenant("chat").held = 20;
  ASSERT_TRUE(agent.Exchange().ok());
  const std::string set =
      Ctl({"set", "tenant", "chat", "--limit", "10 MiB", "--weight", "2", "--dry-run"}).output;
  EXPECT_EQ(set,
            "tenant.update chat (revision 2)\n"
            "  limit 40 MiB -> 10 MiB\n"
            "  weight 1 -> 2\n"
            "Leases, at today's demand:\n"
            "  TENANT  LEASED   AFTER  DIFFERENCE\n"
            "  chat    40 MiB  10 MiB    - 30 MiB\n"
            "Nothing was changed: this was a dry run.\n");
  WriteFile("new.yaml",
            "version: 1\ntenants:\n"
            "- {name: chat, guaranteed: 0, limit: 40 MiB}\n"
            "- {name: urgent, guaranteed: 10 MiB, limit: 20 MiB}\n");
  const std::vector<std::string> apply = {"apply", "-f", folder_ / "new.yaml", "--dry-run"};
  EXPECT_THAT(Ctl(apply).output, HasSubstr("tenant.create urgent (revision 1)\n"));
  const json::value rehearsal = CtlJson(apply);
  EXPECT_TRUE(rehearsal.at("dry_run").as_bool());
  EXPECT_EQ(rehearsal.at("changes").as_array().size(), 1u);
  EXPECT_EQ(Ctl({"delete", "tenant", "none", "--dry-run"}).code, 3);
  EXPECT_EQ(Ctl({"forget-agent", "gpu-0", "--dry-run"}).code, 4);
  EXPECT_EQ(Ctl({"set", "tenant", "chat", "--guaranteed", "50 MiB", "--dry-run"}).code, 1)
      << "the same checks";

  const json::value tenants = CtlJson({"get", "tenants"}).at("tenants");
  ASSERT_EQ(tenants.as_array().size(), 1u);
  EXPECT_EQ(tenants.at(0).at("revision"), 1);
  EXPECT_EQ(CtlJson({"audit"}).at("entries").as_array().size(), 1u);
  ASSERT_TRUE(agent.Exchange().ok());
  EXPECT_EQ(agent.tenant("chat").lease, 20u);

  agent.Disconnect();
  EXPECT_TRUE(Eventually([&] { return Ctl({"forget-agent", "gpu-0", "--dry-run"}).code == 0; }));
  EXPECT_THAT(Ctl({"forget-agent", "gpu-0", "--dry-run"}).output,
              AllOf(HasSubstr("agent.forget gpu-0\n"), HasSubstr("pool 40 MiB -> -\n"),
                    HasSubstr("- 40 MiB\n")));
  EXPECT_EQ(Ctl({"get", "agent", "gpu-0"}).code, 0) << "still known";
  EXPECT_THAT(Ctl({"set", "tenant", "chat", "--limit", "40 MiB", "--dry-run"}).output,
              StartsWith("nothing would change\nNo lease would change.\n"));
}

TEST_F(CliTest, DiffComparesAFileWithTheCluster) {
  Apply(
      "- {name: chat, guaranteed: 0, limit: 10 MiB, floors: {}}\n"
      "- {name: other, guaranteed: 0, limit: 1 MiB}\n");
  const auto diff = [&](const std::string& tenants, std::vector<std::string> args = {}) {
    WriteFile("diff.yaml", "version: 1\ntenants:\n" + tenants);
    args.insert(args.begin(), {"diff", "-f", folder_ / "diff.yaml"});
    return Ctl(args);
  };
  Outcome same = diff("- {name: chat, guaranteed: 0, limit: 10 MiB, weight: 1}\n");
  EXPECT_EQ(same.code, 0);
  EXPECT_EQ(same.output, "") << "what the file does not name is left alone";
  const std::string changed =
      "- {name: chat, guaranteed: 1 MiB, limit: 10 MiB, floors: {gpu-0: 1 MiB}}\n"
      "- {name: new, guaranteed: 0, limit: 2 MiB}\n";
  const Outcome differs = diff(changed);
  EXPECT_EQ(differs.code, 1);
  EXPECT_THAT(differs.output, StartsWith("update tenant chat\n"
                                         "  floors.gpu-0 - -> 1 MiB\n"
                                         "  guaranteed 0 B -> 1 MiB\n"
                                         "create tenant new\n"));
  EXPECT_THAT(differs.output, HasSubstr("  limit - -> 2 MiB\n"));
  const Outcome document = diff(changed, {"-o", "json"});
  EXPECT_EQ(document.code, 1);
  EXPECT_EQ(json::parse(document.output).at("tenants").at(0).at("fields").as_array().size(), 2u);
  EXPECT_EQ(diff("- {name: chat}\n").code, 2);
  EXPECT_EQ(Ctl({"diff", "-f", folder_ / "none.yaml"}).code, 2);
  EXPECT_EQ(Bare({"--server", http_, "--token", "wrong", "diff", "-f", folder_ / "diff.yaml"}).code,
            2);
}

TEST_F(CliTest, DrainExplainAndDeleteWhatIsInUse) {
  Apply(
      "- {name: chat, guaranteed: 0, limit: 40 MiB}\n"
      "- {name: other, guaranteed: 0, limit: 40 MiB}\n");
  FakeAgent agent(Agent("gpu-0"));  // 20 slabs of 2 MiB
  ASSERT_EQ(agent.Connect(), "ok");
  ASSERT_TRUE(agent.Exchange().ok());
  for (const char* name : {"chat", "other"}) agent.tenant(name).wanted = 20;
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(agent.Exchange().ok());
  agent.tenant("chat").held = agent.tenant("chat").lease;
  EXPECT_THAT(Ctl({"explain", "tenant", "chat"}).output,
              AllOf(HasSubstr("may hold 40 MiB; it wants 40 MiB and has leases of 20 MiB."),
                    HasSubstr("of the pool of 40 MiB others have: other 20 MiB.")));
  EXPECT_EQ(
      CtlJson({"explain", "tenant", "chat"}).at("short").at(0).at("others").at(0).at("tenant"),
      "other");
  EXPECT_EQ(Ctl({"explain", "tenant", "none"}).code, 3);

  EXPECT_THAT(Ctl({"drain", "agent", "gpu-0", "--dry-run"}).output,
              AllOf(HasSubstr("draining false -> true"), HasSubstr("- 20 MiB")));
  EXPECT_EQ(Ctl({"drain", "agent", "gpu-0"}).output, "agent gpu-0 drains\n");
  EXPECT_THAT(Ctl({"get", "agents"}).output, HasSubstr("connected, draining"));
  EXPECT_EQ(Ctl({"undrain", "agent", "gpu-0"}).output, "agent gpu-0 is in use again\n");
  EXPECT_EQ(Ctl({"drain", "agent", "none"}).code, 3);

  const Outcome leaving = Ctl({"delete", "tenant", "chat"});
  EXPECT_EQ(leaving.code, 0);
  EXPECT_THAT(leaving.output, StartsWith("tenant chat is leaving: 20 MiB are still leased"));
  EXPECT_THAT(Ctl({"get", "tenants"}).output, HasSubstr("leaving"));
  agent.tenant("chat").held = agent.tenant("chat").wanted = 0;
  EXPECT_TRUE(Eventually([&] {
    return agent.Exchange().ok() && Ctl({"get", "tenant", "chat"}).code == 3;
  }));
}

TEST_F(CliTest, CheckAsksNobody) {
  WriteFile("good.yaml",
            "version: 1\ntenants:\n- {name: a, guaranteed: 1 MiB, limit: 2 MiB}\n"
            "- {name: b, guaranteed: 0, limit: 1 MiB}\n");
  const Outcome good = Bare({"check", "-f", folder_ / "good.yaml"});
  EXPECT_EQ(good.code, 0);
  EXPECT_THAT(good.output, HasSubstr("2 tenants, guaranteed 1 MiB and limits 3 MiB in all"));
  WriteFile("bad.yaml", "version: 1\ntenants:\n- {name: a, guaranteed: 3 MiB, limit: 2 MiB}\n");
  const Outcome bad = Bare({"check", "-f", folder_ / "bad.yaml"});
  EXPECT_EQ(bad.code, 2);
  EXPECT_THAT(bad.output, HasSubstr("bad.yaml:3"));
}

TEST_F(CliTest, WatchPrintsWhatChanges) {
  Apply("- {name: chat, guaranteed: 0, limit: 10 MiB}\n");
  const std::string out = folder_ / "watch";
  Process watch("kvpoolctl",
                {"--server", http_, "--token-file", folder_ / "operator.token", "get", "tenants",
                 "--watch", "--interval", "100 ms"},
                out);
  const auto headers = [&] {
    const std::string text = ReadAll(out);
    size_t count = 0;
    for (size_t at = text.find("NAME"); at != std::string::npos; at = text.find("NAME", at + 1)) {
      ++count;
    }
    return count;
  };
  EXPECT_TRUE(Eventually([&] { return headers() == 1; })) << ReadAll(out);
  Ctl({"set", "tenant", "chat", "--limit", "11 MiB"});
  EXPECT_TRUE(Eventually([&] { return ReadAll(out).find("11 MiB") != std::string::npos; }));
  EXPECT_EQ(headers(), 2u) << "nothing is printed twice: " << ReadAll(out);
  manager_ = Process();
  EXPECT_EQ(watch.Wait(), 5) << "it ends when the manager does";
}

TEST_F(CliTest, TheEnvironmentIsOverriddenByFlags) {
  setenv("KVPOOL_SERVER", http_.c_str(), 1);
  setenv("KVPOOL_TOKEN", "operator-token", 1);
  EXPECT_EQ(Bare({"get", "tenants"}).code, 0);
  EXPECT_EQ(Bare({"--token", "wrong", "get", "tenants"}).code, 1);
  WriteFile("wrong.token", "wrong\n");
  setenv("KVPOOL_TOKEN_FILE", (folder_ / "wrong.token").c_str(), 1);
  EXPECT_EQ(Bare({"get", "tenants"}).code, 1);
  EXPECT_EQ(Bare({"--token", "operator-token", "get", "tenants"}).code, 0);
  for (const char* name : {"KVPOOL_SERVER", "KVPOOL_TOKEN", "KVPOOL_TOKEN_FILE"}) unsetenv(name);
}

TEST_F(CliTest, TenantsSurviveAKilledManager) {
  Apply("- {name: chat, guaranteed: 8 MiB, limit: 40 MiB}\n");
  manager_.Kill(SIGKILL);
  EXPECT_EQ(manager_.Wait(), 128 + SIGKILL);
  StartManager();
  EXPECT_EQ(CtlJson({"get", "tenants", "chat"}).at("guaranteed").as_int64(), 8 * kMiB);
  EXPECT_EQ(CtlJson({"get", "tenants"}).at("epoch").as_int64(), 2);
  const std::string log = ReadAll(folder_ / "manager.log");
  EXPECT_THAT(log, Not(HasSubstr("operator-token")));
}

TEST_F(CliTest, TheManagerSaysWhyItDoesNotStart) {
  const auto start = [&](const std::vector<std::string>& args) {
    const std::string log = folder_ / ("start" + std::to_string(++runs_));
    Process process("kvpool-manager", args, log);
    const int code = process.Wait();
    return Outcome{code, ReadAll(log)};
  };
  EXPECT_EQ(start({"--version"}).code, 0);
  EXPECT_EQ(start({"--print-config"}).code, 0);
  EXPECT_EQ(start({"--learning", "soon"}).code, 2);
  Outcome outcome = start({});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.output, HasSubstr("set agent_token_file"));
  for (const auto& [setting, value] :
       std::vector<std::pair<std::string, std::string>>{{"--store", "redis"},
                                                        {"--etcd-endpoints", "10.0.0.1"},
                                                        {"--etcd-prefix", "kvpool"},
                                                        {"--etcd-prefix", "/kvpool/"},
                                                        {"--etcd-ttl", "1 s"},
                                                        {"--advertise", "here"}}) {
    EXPECT_EQ(start({"--print-config", setting, value}).code, 2) << setting << " " << value;
  }
  outcome = start({"--agent-token-file", folder_ / "agent.token", "--etcd-user", "u"});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.output, HasSubstr("set all of etcd_user, etcd_password_file"));
  outcome = start({"--database", folder_ / "manager.db", "--agents", "127.0.0.1:0", "--http",
                   "127.0.0.1:0", "--agent-token-file", folder_ / "agent.token"});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.output, HasSubstr("in use by another manager"));
}

}  // namespace
}  // namespace kvpool

// Manager, agent and worker as real processes, running the committed model: the main job.
//
// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "tests/integration/cluster.h"
#include "tests/worker/checkpoint_files.h"
#include "tests/worker/llama_reference.h"

namespace kvpool {
namespace {

const std::string kModel = SourcePath("worker/models/prose-5m");
const std::string kPrompts = SourcePath("worker/demo/prompts.txt");

// Runs kvpool-worker to its end and returns its exit code; `log` holds what it printed.
int RunWorker(std::vector<std::string> args, const std::string& log,
              const std::string& model = kModel) {
  args.insert(args.begin(), {"--model", model});
  return Process("kvpool-worker", std::move(args), log).Wait();
}

// The results in a worker's JSON lines.
std::vector<boost::json::object> Results(const std::string& log) {
  std::vector<boost::json::object> results;
  std::ifstream file(log);
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("{\"id\"", 0) == 0) results.push_back(boost::json::parse(line).as_object());
  }
  return results;
}

// {id: generated token ids}.
std::map<int64_t, boost::json::array> Generated(const std::string& log) {
  std::map<int64_t, boost::json::array> results;
  for (const boost::json::object& result : Results(log)) {
    results[result.at("id").to_number<int64_t>()] = result.at("tokens").as_array();
  }
  return results;
}

// Pages that the results' tokens took together; the one generated last was never fed.
int64_t FullPages(const std::string& log) {
  int64_t pages = 0;
  for (const boost::json::object& result : Results(log)) {
    const int64_t tokens = result.at("prompt_tokens").to_number<int64_t>() +
                           static_cast<int64_t>(result.at("tokens").as_array().size());
    pages += (tokens - (result.at("finish") == "length" ? 1 : 0) + 15) / 16;
  }
  return pages;
}

std::string ReadAll(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

class WorkerTest : public testing::Test {
 protected:
  std::vector<std::string> PoolArgs(const std::string& tenant) {
    return {"--kv",     "pool", "--agent",      cluster_.Socket("a"),
            "--tenant", tenant, "--token-file", tenant + "=" + cluster_.TokenFile(tenant)};
  }

  // Waits until the agent knows the tenant's newest token and has a lease for it.
  void AwaitLease(const std::string& tenant) {
    ASSERT_TRUE(Eventually(
        [&] { return cluster_.GetTenant(tenant).at("ordered").to_number<int64_t>() > 0; }));
    const std::string page = Cluster::CallAt(cluster_.agent_http("a"), "GET", "/metrics").body;
    ASSERT_TRUE(Eventually([&] {
      return Cluster::CallAt(cluster_.agent_http("a"), "GET", "/metrics")
                 .body.find("kvpool_agent_tenant_lease_bytes{tenant=\"" + tenant + "\"}") !=
             std::string::npos;
    }));
  }

  // A small random LCKV model with the committed model's tokenizer: 3 of 6 layers are cached.
  std::string WriteLckvModel() {
    LlamaConfig config = SharingConfig("0_4_4_4_4_5");
    config.vocab = 4096;
    config.head_dim = 16;
    config.max_positions = 512;
    const std::string folder = cluster_.File("lckv");
    std::filesystem::create_directory(folder);
    std::filesystem::copy_file(std::string(kModel) + "/tokenizer.model",
                               folder + "/tokenizer.model");
    WriteCheckpoint(folder, ConfigOf(config), TensorsOf(config, GentleWeights(config, 7)));
    return folder;
  }

  Cluster cluster_;
};

// The formats that keys and values are stored in without a policy's doing.
class WorkerDtypeTest : public WorkerTest, public testing::WithParamInterface<const char*> {};
INSTANTIATE_TEST_SUITE_P(Dtypes, WorkerDtypeTest, testing::Values("bf16", "f16"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(WorkerDtypeTest, UnderFullThePoolGivesTheSameTokensAsPrivateMemory) {
  cluster_.StartAgent("a", 16);
  cluster_.PutTenant("library", R"({"guaranteed": "16 MiB", "limit": "32 MiB"})");
  cluster_.MakeToken("library");
  AwaitLease("library");
  std::vector<std::string> args = {"--prompts", kPrompts, "--max-tokens", "40",         "--batch",
                                   "8",         "-o",     "json",         "--kv-dtype", GetParam()};
  std::vector<std::string> pool_args = PoolArgs("library");
  pool_args.insert(pool_args.end(), args.begin(), args.end());
  args.insert(args.end(), {"--kv", "private"});
  ASSERT_EQ(RunWorker(args, cluster_.File("private.log")), 0);
  ASSERT_EQ(RunWorker(pool_args, cluster_.File("pool.log")), 0)
      << ReadAll(cluster_.File("pool.log"));
  const auto expected = Generated(cluster_.File("private.log"));
  EXPECT_EQ(expected.size(), 40u);
  EXPECT_EQ(Generated(cluster_.File("pool.log")), expected);
  EXPECT_TRUE(Eventually(
      [&] { return cluster_.GetTenant("library").at("held").to_number<int64_t>() == 0; }));
}

TEST_F(WorkerTest, PromptsThatBeginAlikeAreFedOnceAndGiveTheSameTokens) {
  cluster_.StartAgent("a", 16);
  cluster_.PutTenant("chat", R"({"guaranteed": "16 MiB", "limit": "32 MiB"})");
  cluster_.MakeToken("chat");
  AwaitLease("chat");
  const std::string prompts = cluster_.File("alike.txt");
  std::string preamble;
  for (int i = 0; i < 12; ++i) preamble += "The keeper of the lighthouse wrote down every ship. ";
  {
    std::ofstream file(prompts);
    for (const char* end : {"Today", "In winter", "Her brother", "Nobody", "Today"}) {
      file << preamble << end << "\n";
    }
  }
  std::vector<std::string> args = {"--prompts", prompts, "--max-tokens", "30",
                                   "--batch",   "2",     "-o",           "json"};
  std::vector<std::string> pool_args = PoolArgs("chat");
  pool_args.insert(pool_args.end(), args.begin(), args.end());
  pool_args.insert(pool_args.end(), {"--json", cluster_.File("summary.json")});
  args.insert(args.end(), {"--kv", "private"});
  ASSERT_EQ(RunWorker(args, cluster_.File("private.log")), 0);
  ASSERT_EQ(RunWorker(pool_args, cluster_.File("pool.log")), 0)
      << ReadAll(cluster_.File("pool.log"));
  EXPECT_EQ(Generated(cluster_.File("pool.log")), Generated(cluster_.File("private.log")));
  const auto stats =
      boost::json::parse(ReadAll(cluster_.File("summary.json"))).at("tenants").at(0).as_object();
  // Two begin together; each of the three after them shares all of the preamble's full pages.
  const int64_t prompt =
      Results(cluster_.File("pool.log"))[0].at("prompt_tokens").to_number<int64_t>();
  EXPECT_GE(stats.at("shared_tokens").to_number<int64_t>(), 3 * (prompt / 16 - 1) * 16);
  EXPECT_GT(prompt, 64);
}

TEST_F(WorkerTest, ATightBudgetIsKeptWhileEverySessionFinishes) {
  cluster_.StartAgent("a", 8);
  cluster_.PutTenant("press", R"({"guaranteed": "2 MiB", "limit": "4 MiB", "policy":
      {"name": "scissorhands", "budget": 64, "window": 64, "recent": 16}})");
  cluster_.MakeToken("press");
  AwaitLease("press");
  std::vector<std::string> args = PoolArgs("press");
  args.insert(args.end(), {"--prompts", kPrompts, "--max-tokens", "150", "--batch", "16", "-o",
                           "json", "--json", cluster_.File("press.json")});
  int64_t peak = 0;
  Process worker = [&] {
    args.insert(args.begin(), {"--model", kModel});
    return Process("kvpool-worker", args, cluster_.File("press.log"));
  }();
  ASSERT_TRUE(Eventually(
      [&] {
        const boost::json::object tenant = cluster_.GetTenant("press");
        peak = std::max(peak, tenant.at("held").to_number<int64_t>());
        EXPECT_LE(tenant.at("held").to_number<int64_t>(), 4 << 20);
        EXPECT_LE(tenant.at("leased").to_number<int64_t>(), 4 << 20);
        return !worker.Running();
      },
      std::chrono::seconds(60)));
  EXPECT_GT(peak, 0);
  EXPECT_EQ(Generated(cluster_.File("press.log")).size(), 40u);
  const boost::json::object tenant = cluster_.GetTenant("press");
  EXPECT_GT(tenant.at("compactions").to_number<int64_t>(), 40);
  const double recovery = tenant.at("recovery").at("mean").to_number<double>();
  EXPECT_GT(recovery, 0.3);
  EXPECT_LE(recovery, 1.0);
  const HttpResponse reclaims = cluster_.Call("GET", "/v1/tenants/press/reclaims");
  EXPECT_NE(reclaims.body.find("compaction"), std::string::npos) << reclaims.body;
  // Sessions are handed over in batches, and each is an observation of its own.
  const std::string metrics = Cluster::CallAt(cluster_.agent_http("a"), "GET", "/metrics").body;
  const auto metric = [&](const std::string& name) {
    const std::string line = "\n" + name + "{tenant=\"press\"} ";
    const size_t at = metrics.find(line);
    return at == std::string::npos ? -1 : std::stod(metrics.substr(at + line.size()));
  };
  EXPECT_GT(metric("kvpool_agent_compactions_total"), 40);
  EXPECT_EQ(metric("kvpool_agent_recovery_ratio_count"), metric("kvpool_agent_compactions_total"));
}

// Its limit comes down while it runs, and its operator lets sessions be ended for that: they are
// fed again, in the room that is left, and say what they would have said.
TEST_F(WorkerTest, SequencesWhoseSessionsTheAgentEndsFinishAllTheSame) {
  cluster_.StartAgent("a", 16);
  cluster_.PutTenant("library", R"({"guaranteed": 0, "limit": "24 MiB"})");
  cluster_.MakeToken("library");
  AwaitLease("library");
  // So many tokens that none ends by itself while its limit comes down.
  const std::vector<std::string> args = {"--prompts", kPrompts, "--max-tokens", "200",
                                         "--batch",   "16",     "-o",           "json"};
  std::vector<std::string> private_args = {"--kv", "private"}, pool_args = PoolArgs("library");
  private_args.insert(private_args.end(), args.begin(), args.end());
  pool_args.insert(pool_args.end(), args.begin(), args.end());
  pool_args.insert(pool_args.end(), {"--json", cluster_.File("pool.json"), "--model", kModel});
  Process worker("kvpool-worker", pool_args, cluster_.File("pool.log"));
  const auto held = [&] { return cluster_.GetTenant("library").at("held").to_number<int64_t>(); };
  ASSERT_TRUE(Eventually([&] { return held() >= 6 << 20; }, std::chrono::seconds(60)));
  cluster_.PutTenant("library", R"({"guaranteed": 0, "limit": "4 MiB", "over_deadline": "preempt",
      "grace": {"cold": "20 ms", "running": "20 ms"}})");
  EXPECT_TRUE(Eventually([&] { return held() <= 4 << 20; }, std::chrono::seconds(30)));
  EXPECT_EQ(worker.Wait(), 0) << ReadAll(cluster_.File("pool.log"));
  ASSERT_EQ(RunWorker(private_args, cluster_.File("private.log")), 0);
  const auto expected = Generated(cluster_.File("private.log"));
  EXPECT_EQ(expected.size(), 40u);
  EXPECT_EQ(Generated(cluster_.File("pool.log")), expected);
  const auto summary = boost::json::parse(ReadAll(cluster_.File("pool.json")));
  EXPECT_GT(summary.at("tenants").at(0).at("preemptions").to_number<int64_t>(), 0);
  EXPECT_EQ(summary.at("tenants").at(0).at("failed").to_number<int64_t>(), 0);
  const HttpResponse reclaims = cluster_.Call("GET", "/v1/tenants/library/reclaims");
  EXPECT_NE(reclaims.body.find("preemption"), std::string::npos) << reclaims.body;
}

// Prompts of a few hundred tokens under FastGen: each is profiled and compacted at its end, and its
// pages come free. T is a mean over all rows of the prompt, recovery is measured on its last ones
// and on the queries after it, on keys that are chosen for good: a few percent lower at worst.
TEST_P(WorkerDtypeTest, FastGenCompactsEachPromptByItsOwnProfile) {
  cluster_.StartAgent("a", 16);
  cluster_.PutTenant("press", R"({"guaranteed": "16 MiB", "limit": "32 MiB", "policy":
      {"name": "fastgen", "recovery": 0.92, "slack": 32}})");
  cluster_.MakeToken("press");
  AwaitLease("press");
  const std::string text = ReadAll(SourcePath("worker/demo/text.txt"));
  std::ofstream prompts(cluster_.File("long.txt"));
  for (size_t i = 0; i < 4; ++i) {
    prompts << boost::json::object{{"prompt", text.substr(i * 1200, 1200)}} << "\n";
  }
  prompts.close();
  std::vector<std::string> args = PoolArgs("press");
  args.insert(args.end(), {"--prompts", cluster_.File("long.txt"), "--max-tokens", "80", "-o",
                           "json", "--kv-dtype", GetParam()});
  ASSERT_EQ(RunWorker(args, cluster_.File("press.log")), 0) << ReadAll(cluster_.File("press.log"));
  EXPECT_EQ(Generated(cluster_.File("press.log")).size(), 4u);
  ASSERT_TRUE(Eventually([&] {
    return cluster_.GetTenant("press").at("compactions").to_number<int64_t>() >= 4 * 3;
  })) << ReadAll(cluster_.File("press.log"));
  const boost::json::object recovery = cluster_.GetTenant("press").at("recovery").as_object();
  EXPECT_GE(recovery.at("mean").to_number<double>(), 0.92 - 0.03);
  EXPECT_LE(recovery.at("mean").to_number<double>(), 1.0);
  int64_t freed = 0;
  const HttpResponse answer = cluster_.Call("GET", "/v1/tenants/press/reclaims");
  const boost::json::object reclaims = Cluster::Json(answer);
  for (const auto& entry : reclaims.at("reclaims").as_array()) {
    if (entry.at("step").as_string() != "compaction") continue;
    freed += entry.at("bytes").to_number<int64_t>();
  }
  // Four prompts of about 300 tokens are 76 pages of 48 KiB, of which a fifth or so comes back.
  EXPECT_GT(freed, 10 * 48 * 1024) << answer.body;
  const std::string metrics = Cluster::CallAt(cluster_.agent_http("a"), "GET", "/metrics").body;
  EXPECT_NE(metrics.find("kvpool_agent_bad_profiles_total 0"), std::string::npos);
  EXPECT_NE(metrics.find("kvpool_agent_missing_profiles_total 0"), std::string::npos);
}

TEST_F(WorkerTest, AnLckvModelGivesTheSameTokensFromThePoolAsFromPrivateMemory) {
  const std::string model = WriteLckvModel();
  cluster_.StartAgent("a", 16);
  cluster_.PutTenant("library", R"({"guaranteed": "16 MiB", "limit": "32 MiB"})");
  cluster_.MakeToken("library");
  AwaitLease("library");
  for (const std::string mode : {"iterated", "sequential"}) {
    std::vector<std::string> args = {"--prompts", kPrompts,   "--max-tokens", "40", "--batch",
                                     "8",         "--prompt", mode,           "-o", "json"};
    std::vector<std::string> pool_args = PoolArgs("library");
    pool_args.insert(pool_args.end(), args.begin(), args.end());
    pool_args.insert(pool_args.end(), {"--json", cluster_.File(mode + ".json")});
    args.insert(args.end(), {"--kv", "private", "--json", cluster_.File(mode + ".private.json")});
    const std::string private_log = cluster_.File(mode + ".private.log");
    const std::string pool_log = cluster_.File(mode + ".log");
    ASSERT_EQ(RunWorker(args, private_log, model), 0) << ReadAll(private_log);
    ASSERT_EQ(RunWorker(pool_args, pool_log, model), 0) << ReadAll(pool_log);
    const auto expected = Generated(private_log);
    EXPECT_EQ(expected.size(), 40u);
    EXPECT_EQ(Generated(pool_log), expected) << mode;
    // Pages of 3 layers x 2 heads x 16 tokens x 2 x 16 numbers in bf16: half of the full model's.
    const boost::json::value summary = boost::json::parse(ReadAll(cluster_.File(mode + ".json")));
    EXPECT_EQ(summary.at("tenants").at(0).at("full_cache_bytes").to_number<int64_t>(),
              FullPages(pool_log) * 3 * 2 * 1024);
  }
  EXPECT_NE(Generated(cluster_.File("iterated.log")), Generated(cluster_.File("sequential.log")));
}

// A shared layer's rows are scored by the queries of all layers that use them, and compacted.
TEST_F(WorkerTest, AnLckvModelIsCompactedByPolicy) {
  const std::string model = WriteLckvModel();
  cluster_.StartAgent("a", 8);
  cluster_.PutTenant("press", R"({"guaranteed": "2 MiB", "limit": "4 MiB", "policy":
      {"name": "scissorhands", "budget": 64, "window": 64, "recent": 16}})");
  cluster_.MakeToken("press");
  AwaitLease("press");
  std::vector<std::string> args = PoolArgs("press");
  args.insert(args.end(), {"--prompts", kPrompts, "--max-tokens", "150", "-o", "json"});
  ASSERT_EQ(RunWorker(args, cluster_.File("press.log"), model), 0)
      << ReadAll(cluster_.File("press.log"));
  EXPECT_EQ(Generated(cluster_.File("press.log")).size(), 40u);
  const boost::json::object tenant = cluster_.GetTenant("press");
  EXPECT_GT(tenant.at("compactions").to_number<int64_t>(), 40);
  const double recovery = tenant.at("recovery").at("mean").to_number<double>();
  EXPECT_GT(recovery, 0.1) << "random weights attend evenly";
  EXPECT_LE(recovery, 1.0);
}

TEST_F(WorkerTest, TheDashboardNamesOnlyMetricsThatTheDaemonsServe) {
  cluster_.StartAgent("a", 8);
  cluster_.PutTenant("press", R"({"guaranteed": "2 MiB", "limit": "4 MiB", "policy":
      {"name": "scissorhands", "budget": 64, "window": 64, "recent": 16}})");
  cluster_.MakeToken("press");
  AwaitLease("press");
  std::vector<std::string> args = PoolArgs("press");
  args.insert(args.end(),
              {"--prompts", kPrompts, "--max-tokens", "100", "--batch", "40", "-o", "json"});
  ASSERT_EQ(RunWorker(args, cluster_.File("press.log")), 0) << ReadAll(cluster_.File("press.log"));
  std::ofstream(cluster_.File("agent.txt"))
      << Cluster::CallAt(cluster_.agent_http("a"), "GET", "/metrics").body;
  std::ofstream(cluster_.File("manager.txt")) << cluster_.Call("GET", "/metrics").body;
  const std::string command = "python3 " + SourcePath("scripts/check_dashboard.py") +
                              " --metrics " + cluster_.File("agent.txt") + " " +
                              cluster_.File("manager.txt");
  EXPECT_EQ(system(command.c_str()), 0);
}

TEST_F(WorkerTest, ARestartedManagerKeepsTenantsAndTakesNothingFromTheAgent) {
  cluster_.StartAgent("a", 8);
  cluster_.PutTenant("library", R"({"guaranteed": "8 MiB", "limit": "16 MiB"})");
  cluster_.MakeToken("library");
  AwaitLease("library");
  cluster_.StopManager();
  // Without a manager the last lease holds.
  std::vector<std::string> args = PoolArgs("library");
  args.insert(args.end(), {"--prompts", kPrompts, "--max-tokens", "10", "--batch", "8"});
  EXPECT_EQ(RunWorker(args, cluster_.File("alone.log")), 0) << ReadAll(cluster_.File("alone.log"));
  cluster_.StartManager();
  EXPECT_EQ(cluster_.GetTenant("library").at("limit").to_number<int64_t>(), 16 << 20);
  EXPECT_TRUE(Eventually(
      [&] { return cluster_.GetTenant("library").at("leased").to_number<int64_t>() > 0; }));
}

// Every key stays, nearly all in 4 bits: the model predicts a text as well as with all 16.
TEST_F(WorkerTest, FullWithInt4PredictsATextAsWellAsNative) {
  cluster_.StartAgent("a", 32);
  const auto perplexity = [&](const std::string& tenant, const std::string& format) {
    cluster_.PutTenant(tenant, R"({"guaranteed": "16 MiB", "limit": "32 MiB", "policy":
        {"name": "full", "format": ")" +
                                   format + R"(", "open": 32}})");
    cluster_.MakeToken(tenant);
    AwaitLease(tenant);
    std::vector<std::string> args = PoolArgs(tenant);
    args.insert(args.end(),
                {"--score", SourcePath("worker/demo/text.txt"), "--context", "512", "--windows",
                 "4", "--chunk", "32", "--json", cluster_.File(tenant + ".json")});
    EXPECT_EQ(RunWorker(args, cluster_.File(tenant + ".log")), 0)
        << ReadAll(cluster_.File(tenant + ".log"));
    const auto summary = boost::json::parse(ReadAll(cluster_.File(tenant + ".json")));
    return summary.at("score").at("perplexity").to_number<double>();
  };
  const double native = perplexity("library", "native"), int4 = perplexity("press", "int4");
  EXPECT_GT(native, 1.0);
  EXPECT_NE(int4, native) << "nothing was quantised";
  EXPECT_NEAR(int4 / native, 1.0, 0.02);
  // Four windows of 512 tokens are 128 pages of 48 KiB; of what is sealed at least a third is
  // freed.
  std::string body;
  EXPECT_TRUE(Eventually([&] {
    const HttpResponse answer = cluster_.Call("GET", "/v1/tenants/press/reclaims");
    body = answer.body;
    const boost::json::object reclaims = Cluster::Json(answer);
    int64_t freed = 0;
    for (const auto& entry : reclaims.at("reclaims").as_array()) {
      if (entry.at("step") != "requantisation" || entry.at("reason") != "scheduled") continue;
      freed += entry.at("bytes").to_number<int64_t>();
    }
    return freed > 128 * 48 * 1024 / 3;
  })) << body;
  EXPECT_EQ(body.find("\"compaction\""), std::string::npos) << body;

  const HttpResponse refused = cluster_.Call(
      "PUT", "/v1/tenants/press",
      R"({"guaranteed": "16 MiB", "limit": "32 MiB", "policy": {"name": "full", "format": "int2"}})");
  EXPECT_EQ(refused.status, 400) << refused.body;
  EXPECT_NE(refused.body.find("native or fp8 or int8 or int4"), std::string::npos) << refused.body;
}

TEST_F(WorkerTest, ASessionShorterThanAChunkRuns) {
  cluster_.StartAgent("a", 8);
  cluster_.PutTenant("library", R"({"guaranteed": "8 MiB", "limit": "16 MiB"})");
  cluster_.MakeToken("library");
  AwaitLease("library");
  std::ofstream(cluster_.File("short.txt")) << "Hello\n";
  std::vector<std::string> args = PoolArgs("library");
  args.insert(args.end(), {"--prompts", cluster_.File("short.txt"), "--max-tokens", "8"});
  EXPECT_EQ(RunWorker(args, cluster_.File("short.log")), 0) << ReadAll(cluster_.File("short.log"));
}

TEST_F(WorkerTest, AWorkerSaysWhatIsWrong) {
  cluster_.StartAgent("a", 8);
  cluster_.PutTenant("library", R"({"guaranteed": "8 MiB", "limit": "16 MiB"})");
  cluster_.WriteSecret("library.token", "kvp_not_a_token");
  std::vector<std::string> args = PoolArgs("library");
  args.insert(args.end(), {"--prompts", kPrompts});
  EXPECT_NE(RunWorker(args, cluster_.File("wrong.log")), 0);
  EXPECT_NE(ReadAll(cluster_.File("wrong.log")).find("no tenant of this agent has this token"),
            std::string::npos)
      << ReadAll(cluster_.File("wrong.log"));
}

}  // namespace
}  // namespace kvpool

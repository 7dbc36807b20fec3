// kvpoolctl: the operator's tool. Reads the command line, runs one command, prints, exits.
//
// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <functional>
#include <iostream>
#include <string>
#include <thread>

#include "client/cli/commands.h"
#include "common/secret.h"
#include "common/version.h"

namespace kvpool {
namespace {

constexpr char kFooter[] = R"(
Examples:
  kvpoolctl apply -f tenants.yaml
  kvpoolctl get tenants
  kvpoolctl describe tenant chat              budget, share of each agent, last 20 reclaims
  kvpoolctl set tenant chat --limit "24 GiB"
  kvpoolctl set tenant chat --policy scissorhands --param budget=512
  kvpoolctl token create chat > chat.token    the token is shown this once

Exit codes: 0 ok, 1 failure, 2 wrong command line or file, 3 not found,
4 conflict (changed by somebody else, or in use), 5 the manager cannot be reached.
)";

using Command = std::function<absl::StatusOr<std::string>(const ApiClient&, Output)>;

struct Options {
  std::string server = "127.0.0.1:7610";
  std::string token_file;
  std::string output = "table";
  std::string name, id, file;
  TenantChange change;
  bool once = false;
  Command command;
  bool repeat = false;
};

CLI::App* Add(CLI::App& parent, const std::string& name, const std::string& about, Options& options,
              Command command) {
  CLI::App* added = parent.add_subcommand(name, about);
  added->callback([&options, command = std::move(command)] { options.command = command; });
  return added;
}

void AddReading(CLI::App& app, Options& o) {
  CLI::App* get = app.add_subcommand("get", "List tenants or agents")->require_subcommand(1);
  Add(*get, "tenants", "Every tenant: budget, use, refusals, compactions, recovery", o, GetTenants)
      ->alias("tenant");
  Add(*get, "agents", "Every agent: pool, leased, free, stuck", o, GetAgents)->alias("agent");
  CLI::App* describe =
      app.add_subcommand("describe", "Everything about one tenant or agent")->require_subcommand(1);
  Add(*describe, "tenant", "Budget, share of each agent, last reclaims", o,
      [&o](const ApiClient& api, Output output) { return DescribeTenant(api, o.name, output); })
      ->add_option("name", o.name, "The tenant")
      ->required();
  Add(*describe, "agent", "Pool and tenants of one agent", o,
      [&o](const ApiClient& api, Output output) { return DescribeAgent(api, o.name, output); })
      ->add_option("name", o.name, "The agent")
      ->required();
  CLI::App* top = Add(app, "top", "Agents and tenants, again every second on a terminal", o, Top);
  top->add_flag("--once", o.once, "Print once and exit");
  top->final_callback([&o] { o.repeat = !o.once && o.output == "table" && isatty(1) == 1; });
}

void AddChanging(CLI::App& app, Options& o) {
  CLI::App* set = app.add_subcommand("set", "Change one tenant")->require_subcommand(1);
  CLI::App* tenant =
      Add(*set, "tenant", "Change budget or policy; what is not named stays", o,
          [&o](const ApiClient& api, Output output) { return SetTenant(api, o.change, output); });
  tenant->add_option("name", o.change.name, "The tenant")->required();
  tenant->add_option("--guaranteed", o.change.guaranteed, "Bytes it can always hold: \"8 GiB\"");
  tenant->add_option("--limit", o.change.limit, "Bytes it never exceeds: \"24 GiB\"");
  tenant->add_option("--policy", o.change.policy, "full, streaming or scissorhands");
  tenant->add_option("--param", o.change.parameters, "A parameter of the policy: budget=256");
  tenant->add_option("--if-revision", o.change.if_revision,
                     "Refuse when the tenant is at another revision");

  CLI::App* apply =
      Add(app, "apply", "Create and change tenants from a file, all or nothing", o,
          [&o](const ApiClient& api, Output output) { return Apply(api, o.file, output); });
  apply->add_option("-f,--file", o.file, "The tenants file (YAML)")->required();

  CLI::App* remove = app.add_subcommand("delete", "Delete a tenant")->require_subcommand(1);
  Add(*remove, "tenant", "Delete a tenant that holds nothing any more", o,
      [&o](const ApiClient& api, Output output) { return DeleteTenant(api, o.name, output); })
      ->add_option("name", o.name, "The tenant")
      ->required();

  CLI::App* token = app.add_subcommand("token", "Worker tokens of a tenant")->require_subcommand(1);
  Add(*token, "create", "A new token, shown this once", o,
      [&o](const ApiClient& api, Output output) { return CreateToken(api, o.name, output); })
      ->add_option("tenant", o.name, "The tenant")
      ->required();
  CLI::App* revoke = Add(
      *token, "revoke", "Revoke a token", o,
      [&o](const ApiClient& api, Output output) { return RevokeToken(api, o.name, o.id, output); });
  revoke->add_option("tenant", o.name, "The tenant")->required();
  revoke->add_option("id", o.id, "The token's id, from describe tenant -o json")->required();
}

ExitCode Report(const absl::Status& status) {
  std::cerr << "kvpoolctl: " << status.message() << "\n";
  return ExitCodeOf(status);
}

ExitCode Run(const Options& options) {
  const absl::StatusOr<HostPort> server = ParseHostPort(options.server);
  if (!server.ok()) return Report(server.status());
  std::string token;
  if (!options.token_file.empty()) {
    absl::StatusOr<std::string> read = ReadTokenFile(options.token_file);
    if (!read.ok()) return Report(absl::InvalidArgumentError(std::string(read.status().message())));
    token = *std::move(read);
  }
  const ApiClient api(*server, token);
  const Output output = options.output == "json" ? Output::kJson : Output::kTable;
  for (;;) {
    const absl::StatusOr<std::string> text = options.command(api, output);
    if (!text.ok()) return Report(text.status());
    if (options.repeat) std::cout << "\x1b[H\x1b[2J";
    std::cout << *text << std::flush;
    if (!options.repeat) return ExitCode::kOk;
    std::this_thread::sleep_for(std::chrono::seconds(1));
  }
}

}  // namespace
}  // namespace kvpool

int main(int argc, char** argv) {
  kvpool::Options options;
  CLI::App app("Operates kvpool: budgets, policies and tokens of tenants, through the manager.",
               "kvpoolctl");
  app.footer(kvpool::kFooter);
  app.require_subcommand(1);
  app.fallthrough();
  app.set_version_flag("--version", std::string(kvpool::Version()));
  app.add_option("--server", options.server, "host:port of the manager's operator API")
      ->envname("KVPOOL_SERVER")
      ->capture_default_str();
  app.add_option("--token-file", options.token_file, "File with the operator token")
      ->envname("KVPOOL_TOKEN_FILE");
  app.add_option("-o,--output", options.output, "table for people, json for machines")
      ->check(CLI::IsMember({"table", "json"}))
      ->capture_default_str();
  kvpool::AddReading(app, options);
  kvpool::AddChanging(app, options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : static_cast<int>(kvpool::ExitCode::kUsage);
  }
  return static_cast<int>(kvpool::Run(options));
}

// kvpoolctl: flags, help and exit codes. What the commands do is commands.h's.
//
// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cli/commands.h"
#include "client/cli/documents.h"
#include "common/address.h"
#include "common/config.h"
#include "common/quantity.h"
#include "common/secret.h"
#include "common/version.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

constexpr int kUsage = 2;

constexpr char kSummary[] = "operate a kvpool cluster through its manager";

constexpr char kExamples[] = R"(  kvpoolctl diff -f tenants.yaml
  kvpoolctl apply -f tenants.yaml --dry-run
  kvpoolctl apply -f tenants.yaml
  kvpoolctl get tenants
  kvpoolctl describe tenant chat
  kvpoolctl explain tenant chat
  kvpoolctl set tenant chat --limit "12 GiB"
  kvpoolctl set tenant chat --policy scissorhands --param budget=512
  (umask 077; kvpoolctl token create chat > chat.token)
  (umask 077; kvpoolctl operator create ci --scope read > ci.token)
  kvpoolctl policies
  kvpoolctl top)";

constexpr char kExitCodes[] =
    R"(  0 done   1 failed or refused   2 wrong command line or file   3 not found
  4 conflict: in use, or changed by somebody else   5 the server cannot be reached or is not ready)";

// `failed` is what is left for failures that no other code names.
int ExitCode(const absl::Status& status, int failed) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
      return kUsage;
    case absl::StatusCode::kNotFound:
      return 3;
    case absl::StatusCode::kAborted:
      return 4;
    case absl::StatusCode::kUnavailable:
      return 5;
    default:
      return failed;
  }
}

struct Flags {
  std::string server = "127.0.0.1:7610";
  std::string ca;
  std::string token;
  std::string token_file;
  std::string output = "table";
  std::string kind, name, file, token_id, scope;
  std::string guaranteed, limit, policy, borrowing, over_deadline, grace_cold, grace_running;
  std::vector<std::string> parameters, floors;
  int64_t weight = 1, priority = 0, if_revision = 0;
  std::string interval = "2 s";
  uint32_t limit_entries = 20;
  bool once = false, dry_run = false, watch = false;
  int done = 0, failed = 1;  // exit codes, of `diff` others than usual

  Effect effect() const { return dry_run ? Effect::kRehearse : Effect::kChange; }
};

// Text that a parser of ours accepts, so that mistakes in flags are usage errors.
template <typename Parser>
CLI::Validator Parsed(const char* what, Parser parser) {
  return CLI::Validator(
      [parser](std::string& text) {
        const auto parsed = parser(text);
        return parsed.ok() ? "" : std::string(parsed.status().message());
      },
      what);
}

void AddInterval(CLI::App& command, Flags& f) {
  command.add_option("--interval", f.interval, "between two looks")
      ->capture_default_str()
      ->check(Parsed("DURATION", ParseDuration));
}

void AddWatch(CLI::App& command, Flags& f) {
  command.add_flag("--watch", f.watch, "look again and again, and print what has changed");
  AddInterval(command, f);
}

void AddDryRun(CLI::App& command, Flags& f) {
  command.add_flag("--dry-run", f.dry_run,
                   "check, and say what would change and who would lose what; change nothing");
}

// Each look asks the manager.
constexpr Duration kShortestInterval = std::chrono::milliseconds(100);

using Command = std::function<absl::Status(Commands&)>;

absl::StatusOr<Duration> IntervalOf(const Flags& flags) {
  const auto interval = ParseDuration(flags.interval);
  if (interval.ok() && *interval < kShortestInterval) {
    return absl::InvalidArgumentError("--interval must be at least 100 ms");
  }
  return interval;
}

absl::Status RunTop(Commands& commands, const Flags& flags) {
  const auto interval = IntervalOf(flags);
  if (!interval.ok()) return interval.status();
  const bool live = !flags.once && flags.output == "table" && isatty(STDOUT_FILENO) == 1;
  bool first = true;
  return commands.Top([&] {
    if (!first && !live) return Commands::Next::kStop;
    if (!first) std::this_thread::sleep_for(*interval);
    if (live) std::cout << "\x1b[H\x1b[2J";
    first = false;
    return Commands::Next::kShow;
  });
}

// Adds verbs that look: verb, kind, name.
void AddLooks(CLI::App& app, Flags& f, Command& command) {
  const CLI::IsMember kinds({"tenant", "tenants", "agent", "agents"});
  const auto is_tenant = [&f] { return f.kind.starts_with("tenant"); };

  CLI::App* get = app.add_subcommand("get", "List tenants or agents");
  get->add_option("kind", f.kind, "tenants or agents")->required()->check(kinds);
  get->add_option("name", f.name, "only this one");
  AddWatch(*get, f);
  get->callback([&, is_tenant] {
    command = [&, is_tenant](Commands& c) {
      return is_tenant() ? c.GetTenants(f.name) : c.GetAgents(f.name);
    };
  });

  CLI::App* describe = app.add_subcommand(
      "describe", "Show one tenant with its last reclaims, or one agent with its tenants");
  describe->add_option("kind", f.kind, "tenant or agent")->required()->check(kinds);
  describe->add_option("name", f.name)->required();
  AddWatch(*describe, f);
  describe->callback([&, is_tenant] {
    command = [&, is_tenant](Commands& c) {
      return is_tenant() ? c.DescribeTenant(f.name) : c.DescribeAgent(f.name);
    };
  });

  CLI::App* explain = app.add_subcommand("explain", "Say why a tenant has what it has");
  explain->add_option("kind", f.kind, "tenant")->required()->check(CLI::IsMember({"tenant"}));
  explain->add_option("name", f.name)->required();
  AddWatch(*explain, f);
  explain->callback([&] { command = [&](Commands& c) { return c.ExplainTenant(f.name); }; });
}

// Adds verbs that end something.
void AddEndings(CLI::App& app, Flags& f, Command& command) {
  CLI::App* remove = app.add_subcommand(
      "delete", "Delete a tenant: at once, or when it has given back what is leased to it");
  remove->add_option("kind", f.kind, "tenant")->required()->check(CLI::IsMember({"tenant"}));
  remove->add_option("name", f.name)->required();
  AddDryRun(*remove, f);
  remove->callback(
      [&] { command = [&](Commands& c) { return c.DeleteTenant(f.name, f.effect()); }; });

  for (const std::string verb : {"drain", "undrain"}) {
    CLI::App* drain = app.add_subcommand(
        verb, verb == "drain" ? "Take an agent out of use: nothing new, and back what is there"
                              : "Take a drained agent into use again");
    drain->add_option("kind", f.kind, "agent")->required()->check(CLI::IsMember({"agent"}));
    drain->add_option("name", f.name)->required();
    AddDryRun(*drain, f);
    drain->callback([&, verb] {
      command = [&, verb](Commands& c) { return c.DrainAgent(f.name, verb, f.effect()); };
    });
  }

  CLI::App* forget = app.add_subcommand(
      "forget-agent", "Forget an agent that is gone for good: its leases count no more");
  forget->add_option("name", f.name)->required();
  AddDryRun(*forget, f);
  forget->callback(
      [&] { command = [&](Commands& c) { return c.ForgetAgent(f.name, f.effect()); }; });
}

// The flags of `set`: each with what it does to the change when it is given.
class SetFlags {
 public:
  SetFlags(CLI::App& set, Flags& f) {
    Add(set.add_option("--guaranteed", f.guaranteed, "such as \"8 GiB\"")
            ->check(Parsed("SIZE", ParseBytes)),
        [&f](TenantChange& c) { c.guaranteed = *ParseBytes(f.guaranteed); });
    Add(set.add_option("--limit", f.limit, "such as \"12 GiB\"")->check(Parsed("SIZE", ParseBytes)),
        [&f](TenantChange& c) { c.limit = *ParseBytes(f.limit); });
    Add(set.add_option("--floor", f.floors,
                       "part of guaranteed at one agent, such as \"gpu-0=4 GiB\"; repeatable"),
        [&f](TenantChange& c) { c.floors = f.floors; });
    Add(set.add_option("--weight", f.weight, "share of what is borrowed, among its priority")
            ->check(CLI::Range(int64_t{1}, kMaxWeight)),
        [&f](TenantChange& c) { c.weight = f.weight; });
    Add(set.add_option("--priority", f.priority, "higher ones borrow first")
            ->check(CLI::Range(int64_t{0}, kMaxPriority)),
        [&f](TenantChange& c) { c.priority = f.priority; });
    Add(set.add_option("--borrowing", f.borrowing,
                       "on or off: more than guaranteed while it is free")
            ->check(CLI::IsMember({"on", "off"})),
        [&f](TenantChange& c) {
          c.borrowing = f.borrowing == "on" ? Borrowing::kOn : Borrowing::kOff;
        });
    Add(set.add_option("--grace-cold", f.grace_cold, "to give back what idle sessions hold")
            ->check(Parsed("DURATION", ParseDuration)),
        [&f](TenantChange& c) { c.grace_cold = *ParseDuration(f.grace_cold); });
    Add(set.add_option("--grace-running", f.grace_running, "likewise what running ones hold")
            ->check(Parsed("DURATION", ParseDuration)),
        [&f](TenantChange& c) { c.grace_running = *ParseDuration(f.grace_running); });
    Add(set.add_option("--over-deadline", f.over_deadline,
                       "after the grace: hold, or preempt running sessions")
            ->check(CLI::IsMember({"hold", "preempt"})),
        [&f](TenantChange& c) {
          c.over_deadline =
              f.over_deadline == "hold" ? OverDeadline::kHold : OverDeadline::kPreempt;
        });
    std::vector<std::string> policies;
    for (const PolicySchema& schema : PolicySchemas()) policies.push_back(schema.name);
    policies.push_back(kAutoPolicy);
    Add(set.add_option("--policy", f.policy, "by name; another one begins with defaults")
            ->check(CLI::IsMember(policies)),
        [&f](TenantChange& c) { c.policy = f.policy; });
    Add(set.add_option("--param", f.parameters, "of the policy, such as budget=512; repeatable"),
        [&f](TenantChange& c) { c.parameters = f.parameters; });
  }

  // At least one flag must have been given.
  TenantChange Change() const {
    TenantChange change;
    size_t given = 0;
    std::string names;
    for (const auto& [option, apply] : flags_) {
      names += (names.empty() ? "" : ", ") + option->get_name();
      if (option->count() == 0) continue;
      ++given;
      apply(change);
    }
    if (given == 0) throw CLI::RequiredError("at least one of " + names);
    return change;
  }

 private:
  using Apply = std::function<void(TenantChange&)>;
  void Add(CLI::Option* option, Apply apply) { flags_.emplace_back(option, std::move(apply)); }

  std::vector<std::pair<CLI::Option*, Apply>> flags_;
};

void AddSet(CLI::App& app, Flags& f, Command& command) {
  CLI::App* set = app.add_subcommand("set", "Change a tenant's budget or policy");
  set->add_option("kind", f.kind, "tenant")->required()->check(CLI::IsMember({"tenant"}));
  set->add_option("name", f.name)->required();
  const SetFlags flags(*set, f);
  auto* revision =
      set->add_option("--if-revision", f.if_revision, "only if the tenant is at this revision");
  AddDryRun(*set, f);
  set->callback([&, flags, revision] {
    TenantChange change = flags.Change();
    if (revision->count() > 0) change.if_revision = f.if_revision;
    command = [&f, change](Commands& c) { return c.SetTenant(f.name, change, f.effect()); };
  });
}

void AddOperator(CLI::App& app, Flags& f, Command& command) {
  CLI::App* noun = app.add_subcommand("operator", "Say who may use the manager, and for what");
  noun->require_subcommand(1);
  CLI::App* create = noun->add_subcommand("create", "Make a token and print it, this once");
  create->add_option("name", f.name, "a-z, 0-9 and hyphens; the audit log names it")->required();
  create
      ->add_option("--scope", f.scope,
                   "read: look; operate: budgets, policies and agents too; admin: everything")
      ->required()
      ->check(CLI::IsMember({"read", "operate", "admin"}));
  create->callback(
      [&] { command = [&f](Commands& c) { return c.CreateOperator(f.name, f.scope); }; });
  CLI::App* list = noun->add_subcommand("list", "Show names and scopes");
  list->callback([&] { command = [](Commands& c) { return c.ListOperators(); }; });
  CLI::App* revoke = noun->add_subcommand("revoke", "End an operator's token, at once");
  revoke->add_option("name", f.name)->required();
  revoke->callback([&] { command = [&f](Commands& c) { return c.RevokeOperator(f.name); }; });
}

void AddOthers(CLI::App& app, Flags& f, Command& command) {
  CLI::App* apply = app.add_subcommand("apply", "Create and update the tenants of a file");
  apply->add_option("-f,--file", f.file, "tenants file (YAML), - for standard input")->required();
  AddDryRun(*apply, f);
  apply->callback([&] { command = [&f](Commands& c) { return c.Apply(f.file, f.effect()); }; });

  CLI::App* check =
      app.add_subcommand("check", "Check a tenants file by itself; no manager is asked");
  check->add_option("-f,--file", f.file, "tenants file (YAML), - for standard input")->required();
  check->callback([&] { command = [&f](Commands& c) { return c.Check(f.file); }; });

  CLI::App* diff = app.add_subcommand(
      "diff", "Show what applying a file would change; exits with 0: nothing, 1: something");
  diff->add_option("-f,--file", f.file, "tenants file (YAML), - for standard input")->required();
  diff->callback([&] {
    f.failed = kUsage;
    command = [&f](Commands& c) {
      const auto comparison = c.Diff(f.file);
      if (comparison.ok() && *comparison == Comparison::kDiffers) f.done = 1;
      return comparison.status();
    };
  });

  CLI::App* policies =
      app.add_subcommand("policies", "Show the policies a tenant can have, and their parameters");
  policies->callback([&] { command = [](Commands& c) { return c.ShowPolicies(); }; });

  CLI::App* token = app.add_subcommand("token", "Create or revoke a tenant's worker tokens");
  token->require_subcommand(1);
  CLI::App* create = token->add_subcommand("create", "Make a token and print it, this once");
  create->add_option("tenant", f.name)->required();
  create->callback([&] { command = [&f](Commands& c) { return c.CreateToken(f.name); }; });
  CLI::App* revoke = token->add_subcommand("revoke", "End a token; describe tenant lists the ids");
  revoke->add_option("tenant", f.name)->required();
  revoke->add_option("id", f.token_id)->required();
  revoke->callback(
      [&] { command = [&f](Commands& c) { return c.RevokeToken(f.name, f.token_id); }; });

  AddOperator(app, f, command);

  CLI::App* audit =
      app.add_subcommand("audit", "Show who changed what, the newest last (scope admin)");
  audit->add_option("--tenant", f.name, "only changes of this one, its tokens among them");
  audit->add_option("--limit", f.limit_entries, "so many of the newest")
      ->capture_default_str()
      ->check(CLI::Range(uint32_t{1}, limits::kAuditReply));
  audit->callback(
      [&] { command = [&f](Commands& c) { return c.Audit(f.name, f.limit_entries); }; });

  CLI::App* top =
      app.add_subcommand("top", "Show tenants and agents, again and again on a terminal");
  top->add_flag("--once", f.once, "print once and exit");
  AddInterval(*top, f);
  top->callback([&] { command = [&f](Commands& c) { return RunTop(c, f); }; });
}

// Documents of the command line itself; `app` is asked when all commands are in it.
void AddDocuments(CLI::App& app, Flags& f, Command& command) {
  CLI::App* completion =
      app.add_subcommand("completion", "Print a script that completes commands and flags");
  completion->add_option("shell", f.kind, "bash")->required()->check(CLI::IsMember({"bash"}));
  completion->callback([&] {
    command = [&app](Commands&) {
      std::cout << BashCompletion(app);
      return absl::OkStatus();
    };
  });
  CLI::App* man = app.add_subcommand("man", "Print the manual page, as man -l - reads it");
  man->callback([&] {
    command = [&app](Commands&) {
      std::cout << ManPage(app, {.summary = kSummary,
                                 .version = Version(),
                                 .examples = kExamples,
                                 .exit_codes = kExitCodes});
      return absl::OkStatus();
    };
  });
}

void AddGlobals(CLI::App& app, Flags& f) {
  app.set_version_flag("--version", "kvpoolctl " + std::string(Version()));
  app.require_subcommand(1);
  app.fallthrough();
  app.add_option("--server", f.server,
                 "host:port of the manager's API; of several managers all, with commas; where it"
                 " speaks TLS with https:// before each")
      ->envname("KVPOOL_SERVER")
      ->capture_default_str()
      ->check(Parsed("HOST:PORT", ParseHttpServers));
  app.add_option("--ca", f.ca,
                 "for https://: PEM file with the CAs that sign the managers' certificates; without"
                 " one the system's")
      ->envname("KVPOOL_CA");
  auto* file = app.add_option("--token-file", f.token_file,
                              "file with an operator's token (Env:KVPOOL_TOKEN_FILE)");
  app.add_option("--token", f.token,
                 "the token itself; others can see flags, prefer a file (Env:KVPOOL_TOKEN)")
      ->excludes(file);
  app.add_option("-o,--output", f.output, "table or json")
      ->capture_default_str()
      ->check(CLI::IsMember({"table", "json"}));
}

// The first of: flags, KVPOOL_TOKEN_FILE, KVPOOL_TOKEN. Empty when there is none.
absl::StatusOr<std::string> FindToken(const Flags& f,
                                      const std::map<std::string, std::string>& environment) {
  if (!f.token.empty()) return f.token;
  if (!f.token_file.empty()) return ReadTokenFile(f.token_file);
  if (const auto file = environment.find("KVPOOL_TOKEN_FILE"); file != environment.end()) {
    return ReadTokenFile(file->second);
  }
  const auto token = environment.find("KVPOOL_TOKEN");
  return token == environment.end() ? "" : token->second;
}

// Null for servers that are spoken to in the clear.
absl::StatusOr<std::shared_ptr<TlsSource>> OpenTls(const Flags& f, const HttpServers& servers) {
  if (servers.scheme == Scheme::kHttps) return TlsSource::Open({.ca = f.ca});
  if (f.ca.empty()) return nullptr;
  return absl::InvalidArgumentError("--ca is given, but " + f.server +
                                    " is not asked over TLS: write https:// before each server");
}

absl::Status RunInto(const ApiClient& api, const Flags& flags, const Command& command,
                     std::ostream& out) {
  Commands commands(api, flags.output == "json" ? OutputFormat::kJson : OutputFormat::kTable, out);
  return command(commands);
}

// Until it fails or is stopped. Prints what is not as it was.
absl::Status Watch(const ApiClient& api, const Flags& flags, const Command& command) {
  const auto interval = IntervalOf(flags);
  if (!interval.ok()) return interval.status();
  const bool live = flags.output == "table" && isatty(STDOUT_FILENO) == 1;
  std::string shown;
  while (true) {
    std::ostringstream out;
    if (absl::Status status = RunInto(api, flags, command, out); !status.ok()) return status;
    if (out.str() != shown) {
      shown = out.str();
      std::cout << (live ? "\x1b[H\x1b[2J" : "") << shown << std::flush;
    }
    std::this_thread::sleep_for(*interval);
  }
}

int Fail(const std::string& message, int code) {
  std::cerr << "error: " << message << "\n";
  return code;
}

// What help texts end with: an example for what is not plain. Last, because a command takes over
// the footer that the program has when it is added.
void AddFooters(CLI::App& app) {
  app.footer(absl::StrCat("Examples:\n", kExamples, "\n\nExit codes:\n", kExitCodes,
                          "\n\nkvpoolctl COMMAND --help says what a command takes; kvpoolctl man"
                          " is the manual page."));
  const std::vector<std::pair<const char*, const char*>> examples = {
      {"get", "kvpoolctl -o json get tenants"},
      {"set", "kvpoolctl set tenant chat --limit \"12 GiB\" --if-revision 7 --dry-run"},
      {"apply", "kvpoolctl apply -f tenants.yaml --dry-run && kvpoolctl apply -f tenants.yaml"},
      {"diff", "kvpoolctl diff -f tenants.yaml || echo somebody has changed something"},
      {"drain", "kvpoolctl drain agent gpu-0; kvpoolctl describe agent gpu-0 --watch"},
      {"forget-agent", "kvpoolctl forget-agent gpu-0 --dry-run"},
      {"audit", "kvpoolctl audit --tenant chat --limit 50"},
      {"completion", "source <(kvpoolctl completion bash)"},
      {"man", "kvpoolctl man | man -l -"}};
  for (const auto& [name, example] : examples) {
    app.get_subcommand(name)->footer(absl::StrCat("Example:\n  ", example));
  }
}

int Main(int argc, char** argv) {
  CLI::App app("Operates a kvpool cluster through its manager.", "kvpoolctl");
  Flags flags;
  Command command;
  AddGlobals(app, flags);
  AddLooks(app, flags, command);
  AddEndings(app, flags, command);
  AddSet(app, flags, command);
  AddOthers(app, flags, command);
  AddDocuments(app, flags, command);
  AddFooters(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    return Fail(std::string(error.what()) + " (see kvpoolctl --help)", kUsage);
  }
  const auto token = FindToken(flags, ProcessEnvironment());
  if (!token.ok()) return Fail(std::string(token.status().message()), flags.failed);
  const auto servers = ParseHttpServers(flags.server);
  const auto tls = OpenTls(flags, *servers);
  if (!tls.ok()) return Fail(std::string(tls.status().message()), kUsage);
  const ApiClient api(servers->addresses, *token, *tls);
  const absl::Status status =
      flags.watch ? Watch(api, flags, command) : RunInto(api, flags, command, std::cout);
  return status.ok() ? flags.done
                     : Fail(std::string(status.message()), ExitCode(status, flags.failed));
}

}  // namespace
}  // namespace kvpool

int main(int argc, char** argv) { return kvpool::Main(argc, argv); }

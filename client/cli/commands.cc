// Requests, and what is printed of their answers.
//
// SPDX-License-Identifier: Apache-2.0
#include "client/cli/commands.h"

#include <iostream>
#include <iterator>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cli/policy_table.h"
#include "client/cli/render.h"
#include "client/cli/table.h"
#include "common/json_diff.h"
#include "common/tenant_json.h"
#include "common/tenants_file.h"

namespace kvpool {
namespace {

namespace json = boost::json;

// A name in a path must be one: "../x" or "a b" would ask for something else.
absl::StatusOr<std::string> PathOf(const std::string& what, const std::string& name) {
  if (absl::Status status = CheckName(what, name); !status.ok()) {
    return absl::NotFoundError(std::string(status.message()));
  }
  return absl::StrCat("/v1/", what, "s/", name);
}

// InvalidArgument, whatever is wrong with it.
absl::StatusOr<std::vector<TenantSpec>> ReadTenants(const std::string& file) {
  const auto specs = file != "-"
                         ? ReadTenantsFile(file)
                         : ParseTenants(std::string(std::istreambuf_iterator<char>(std::cin), {}),
                                        "standard input");
  if (!specs.ok()) return absl::InvalidArgumentError(specs.status().message());
  return specs;
}

// What the manager says of a tenant, as an operator would say it.
absl::StatusOr<TenantSpec> SpecOf(const json::object& tenant) {
  const json::value document = tenant;
  auto object = JsonObject::From(document, "the tenant in the manager's answer");
  if (!object.ok()) return absl::InternalError(object.status().message());
  auto spec = TenantFromJson(*object, "");
  if (!spec.ok()) return absl::InternalError(spec.status().message());
  return spec;
}

std::string With(Effect effect, const std::string& path) {
  return effect == Effect::kRehearse ? path + "?dry_run=true" : path;
}

}  // namespace

absl::Status Commands::Print(const absl::StatusOr<json::object>& answer,
                             const std::function<std::string(const json::object&)>& render) {
  if (!answer.ok()) return answer.status();
  out_ << (format_ == OutputFormat::kJson ? json::serialize(*answer) + "\n" : render(*answer));
  return absl::OkStatus();
}

absl::Status Commands::PrintChange(const absl::StatusOr<json::object>& answer, Effect effect,
                                   const std::function<std::string(const json::object&)>& done) {
  if (effect == Effect::kRehearse) return Print(answer, RenderRehearsal);
  return Print(answer, done);
}

absl::Status Commands::ShowPolicies() {
  return Print(PolicyDocument(), [](const json::object&) { return PolicyTable(); });
}

absl::Status Commands::GetTenants(const std::string& name) {
  if (name.empty()) {
    return Print(api_.Get("/v1/tenants"), [](const json::object& answer) {
      return RenderTenants(ListOf(answer, "tenants"));
    });
  }
  const auto path = PathOf("tenant", name);
  if (!path.ok()) return path.status();
  return Print(api_.Get(*path), [](const json::object& answer) { return RenderTenants({answer}); });
}

absl::Status Commands::GetAgents(const std::string& name) {
  if (name.empty()) {
    return Print(api_.Get("/v1/agents"),
                 [](const json::object& answer) { return RenderAgents(ListOf(answer, "agents")); });
  }
  const auto path = PathOf("agent", name);
  if (!path.ok()) return path.status();
  return Print(api_.Get(*path), [](const json::object& answer) { return RenderAgents({answer}); });
}

absl::Status Commands::DescribeTenant(const std::string& name) {
  const auto path = PathOf("tenant", name);
  if (!path.ok()) return path.status();
  absl::StatusOr<json::object> tenant = api_.Get(*path);
  const auto reclaims = api_.Get(*path + "/reclaims");
  if (!reclaims.ok()) return reclaims.status();
  if (tenant.ok() && format_ == OutputFormat::kJson) {
    (*tenant)["reclaims"] = ListOf(*reclaims, "reclaims");
  }
  return Print(tenant, [&](const json::object& answer) { return RenderTenant(answer, *reclaims); });
}

absl::Status Commands::DescribeAgent(const std::string& name) {
  const auto path = PathOf("agent", name);
  if (!path.ok()) return path.status();
  return Print(api_.Get(*path), RenderAgent);
}

absl::Status Commands::ExplainTenant(const std::string& name) {
  const auto path = PathOf("tenant", name);
  if (!path.ok()) return path.status();
  return Print(api_.Get(*path + "/explain"), RenderExplanation);
}

absl::Status Commands::Check(const std::string& file) {
  const auto specs = ReadTenants(file);
  if (!specs.ok()) return specs.status();
  return Print(ToJson(*specs), [&](const json::object&) {
    Bytes guaranteed, limits;
    for (const TenantSpec& spec : *specs) {
      guaranteed += spec.guaranteed;
      limits += spec.limit;
    }
    return absl::StrCat(file, ": ", specs->size(), " tenants, guaranteed ",
                        HumanBytes(guaranteed.value()), " and limits ", HumanBytes(limits.value()),
                        " in all\n");
  });
}

absl::Status Commands::SetTenant(const std::string& name, const TenantChange& change,
                                 Effect effect) {
  const auto path = PathOf("tenant", name);
  if (!path.ok()) return path.status();
  const absl::StatusOr<json::object> now = api_.Get(*path);
  if (absl::IsNotFound(now.status())) {
    return absl::NotFoundError(absl::StrCat(std::string(now.status().message()),
                                            "; create it with: kvpoolctl apply -f FILE"));
  }
  if (!now.ok()) return now.status();
  auto spec = SpecOf(*now);
  if (!spec.ok()) return spec.status();
  const auto changed = Changed(*std::move(spec), change);
  if (!changed.ok()) return changed.status();
  json::object body = ToJson(*changed);
  // The revision that was read makes sure that nobody's change in between is undone.
  if (const json::value* revision = now->if_contains("revision")) body["revision"] = *revision;
  if (change.if_revision.has_value()) body["revision"] = *change.if_revision;
  return PrintChange(api_.Put(With(effect, *path), body), effect, RenderChanges);
}

absl::Status Commands::Apply(const std::string& file, Effect effect) {
  const auto specs = ReadTenants(file);
  if (!specs.ok()) return specs.status();
  return PrintChange(api_.Post(With(effect, "/v1/apply"), ToJson(*specs)), effect, RenderChanges);
}

absl::StatusOr<Comparison> Commands::Diff(const std::string& file) {
  const auto specs = ReadTenants(file);
  if (!specs.ok()) return specs.status();
  const auto answer = api_.Get("/v1/tenants");
  if (!answer.ok()) return answer.status();
  std::map<std::string, json::object> there;
  for (const json::value& tenant : ListOf(*answer, "tenants")) {
    if (!tenant.is_object()) continue;
    const auto spec = SpecOf(tenant.get_object());
    if (!spec.ok()) return spec.status();
    there[spec->name] = ToJson(*spec);
  }
  json::array tenants;
  for (const TenantSpec& spec : *specs) {
    const auto now = there.find(spec.name);
    const json::value before = now == there.end() ? json::value() : json::value(now->second);
    const auto changes = Differences(before, ToJson(spec));
    if (changes.empty()) continue;
    tenants.push_back({{"name", spec.name},
                       {"change", before.is_null() ? "create" : "update"},
                       {"fields", ToJson(changes)}});
  }
  const Comparison comparison = tenants.empty() ? Comparison::kSame : Comparison::kDiffers;
  absl::Status printed = Print(json::object{{"tenants", std::move(tenants)}}, RenderDiff);
  if (!printed.ok()) return printed;
  return comparison;
}

absl::Status Commands::DeleteTenant(const std::string& name, Effect effect) {
  const auto path = PathOf("tenant", name);
  if (!path.ok()) return path.status();
  return PrintChange(api_.Delete(With(effect, *path)), effect, [&](const json::object& answer) {
    return answer.empty() ? absl::StrCat("tenant ", name, " deleted\n") : RenderLeaving(answer);
  });
}

absl::Status Commands::DrainAgent(const std::string& name, const std::string& verb, Effect effect) {
  const auto path = PathOf("agent", name);
  if (!path.ok()) return path.status();
  return PrintChange(
      api_.Post(With(effect, *path + "/" + verb), {}), effect, [&](const json::object&) {
        return absl::StrCat("agent ", name, verb == "drain" ? " drains\n" : " is in use again\n");
      });
}

absl::Status Commands::ForgetAgent(const std::string& name, Effect effect) {
  const auto path = PathOf("agent", name);
  if (!path.ok()) return path.status();
  return PrintChange(api_.Delete(With(effect, *path)), effect, [&](const json::object&) {
    return absl::StrCat("agent ", name, " forgotten\n");
  });
}

absl::Status Commands::CreateToken(const std::string& tenant) {
  const auto path = PathOf("tenant", tenant);
  if (!path.ok()) return path.status();
  return Print(api_.Post(*path + "/tokens", {}), RenderToken);
}

absl::Status Commands::RevokeToken(const std::string& tenant, const std::string& id) {
  const auto path = PathOf("tenant", tenant);
  if (!path.ok()) return path.status();
  if (absl::Status status = CheckName("token", id); !status.ok()) {
    return absl::NotFoundError(absl::StrCat("\"", id, "\" is no token id"));
  }
  return Print(api_.Delete(*path + "/tokens/" + id), [&](const json::object&) {
    return absl::StrCat("token ", id, " of tenant ", tenant, " revoked\n");
  });
}

absl::Status Commands::CreateOperator(const std::string& name, const std::string& scope) {
  return Print(api_.Post("/v1/operators", {{"name", name}, {"scope", scope}}), RenderToken);
}

absl::Status Commands::ListOperators() {
  return Print(api_.Get("/v1/operators"), [](const json::object& answer) {
    return RenderOperators(ListOf(answer, "operators"));
  });
}

absl::Status Commands::RevokeOperator(const std::string& name) {
  const auto path = PathOf("operator", name);
  if (!path.ok()) return path.status();
  return Print(api_.Delete(*path),
               [&](const json::object&) { return absl::StrCat("operator ", name, " revoked\n"); });
}

absl::Status Commands::Audit(const std::string& tenant, int64_t limit) {
  std::string path = absl::StrCat("/v1/audit?limit=", limit);
  if (!tenant.empty()) {
    if (absl::Status status = CheckName("tenant", tenant); !status.ok()) {
      return absl::NotFoundError(std::string(status.message()));
    }
    absl::StrAppend(&path, "&tenant=", tenant);
  }
  return Print(api_.Get(path),
               [](const json::object& answer) { return RenderAudit(ListOf(answer, "entries")); });
}

absl::Status Commands::Top(const std::function<Next()>& before_each) {
  while (before_each() == Next::kShow) {
    const auto tenants = api_.Get("/v1/tenants");
    if (!tenants.ok()) return tenants.status();
    const auto agents = api_.Get("/v1/agents");
    if (!agents.ok()) return agents.status();
    json::object both = *tenants;
    both["agents"] = ListOf(*agents, "agents");
    const absl::Status printed =
        Print(both, [&](const json::object& answer) { return RenderTop(answer, *agents); });
    if (!printed.ok()) return printed;
    out_.flush();
  }
  return absl::OkStatus();
}

}  // namespace kvpool

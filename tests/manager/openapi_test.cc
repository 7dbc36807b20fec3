// The OpenAPI document against the running server: what the one has, the other has, and every
// answer is as the document describes it.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/openapi.h"

#include <gmock/gmock.h>

#include <set>

#include "tests/manager/manager_fixture.h"

namespace kvpool {
namespace {

namespace json = boost::json;

// As much of JSON Schema as the document uses; another keyword is an error.
class Checker {
 public:
  explicit Checker(const json::value& document) : document_(document) {}

  // What is wrong, with where; empty when nothing is.
  std::string Check(const json::value& schema, const json::value& value,
                    const std::string& where = "$") const {
    std::string wrong;
    for (const auto& [name, rule] : schema.as_object()) {
      const std::string keyword(name);
      if (keyword == "$ref") {
        wrong += Check(Resolve(rule), value, where);
      } else if (keyword == "type") {
        wrong +=
            HasType(rule, value) ? "" : where + " is not of type " + json::serialize(rule) + "\n";
      } else if (keyword == "enum") {
        const auto& allowed = rule.as_array();
        const bool found = std::find(allowed.begin(), allowed.end(), value) != allowed.end();
        wrong += found ? "" : where + " is none of " + json::serialize(rule) + "\n";
      } else if (keyword == "oneOf") {
        wrong += CheckOneOf(rule.as_array(), value, where);
      } else if (keyword == "items" && value.is_array()) {
        for (const json::value& item : value.as_array()) wrong += Check(rule, item, where + "[]");
      } else if (keyword == "properties" && value.is_object()) {
        for (const auto& [key, property] : rule.as_object()) {
          const json::value* held = value.as_object().if_contains(key);
          if (held != nullptr) wrong += Check(property, *held, where + "." + std::string(key));
        }
      } else if (keyword == "required" && value.is_object()) {
        for (const json::value& key : rule.as_array()) {
          if (value.as_object().contains(key.as_string())) continue;
          wrong += where + " has no " + json::serialize(key) + "\n";
        }
      } else if (keyword == "additionalProperties" && value.is_object()) {
        wrong += CheckFurther(schema.as_object(), rule, value.as_object(), where);
      } else if (!kKnown.contains(keyword)) {
        wrong += where + ": this test knows no keyword " + keyword + "\n";
      }
    }
    return wrong;
  }

  // "#/components/schemas/Tenant"
  const json::value& Resolve(const json::value& reference) const {
    const json::value* at = &document_;
    std::string path(reference.as_string());
    for (size_t begin = 2; begin <= path.size();) {
      const size_t end = std::min(path.find('/', begin), path.size());
      at = &at->at(path.substr(begin, end - begin));
      begin = end + 1;
    }
    return *at;
  }

 private:
  static inline const std::set<std::string> kKnown = {"description", "items", "properties",
                                                      "required", "additionalProperties"};

  static bool HasType(const json::value& type, const json::value& value) {
    if (type.is_array()) {
      const auto& types = type.as_array();
      return std::any_of(types.begin(), types.end(),
                         [&](const json::value& each) { return HasType(each, value); });
    }
    const std::string name(type.as_string());
    return (name == "object" && value.is_object()) || (name == "array" && value.is_array()) ||
           (name == "string" && value.is_string()) || (name == "boolean" && value.is_bool()) ||
           (name == "null" && value.is_null()) || (name == "number" && value.is_number()) ||
           (name == "integer" && (value.is_int64() || value.is_uint64()));
  }

  std::string CheckOneOf(const json::array& schemas, const json::value& value,
                         const std::string& where) const {
    std::string wrong;
    size_t fitting = 0;
    for (const json::value& schema : schemas) {
      const std::string why = Check(schema, value, where);
      wrong += why;
      if (why.empty()) ++fitting;
    }
    return fitting == 1 ? "" : where + " fits " + std::to_string(fitting) + " of oneOf\n" + wrong;
  }

  std::string CheckFurther(const json::object& schema, const json::value& rule,
                           const json::object& value, const std::string& where) const {
    std::string wrong;
    for (const auto& [key, held] : value) {
      const json::value* properties = schema.if_contains("properties");
      if (properties != nullptr && properties->as_object().contains(key)) continue;
      if (rule.is_object()) {
        wrong += Check(rule, held, where + "." + std::string(key));
      } else {
        wrong += where + " has a field that is not described: " + std::string(key) + "\n";
      }
    }
    return wrong;
  }

  const json::value& document_;
};

class OpenApiTest : public ManagerTest {
 protected:
  OpenApiTest() : document_(json::parse(kOpenApiDocument)), checker_(document_) {}

  // "put" of {"put": ...} as an operation's name, "PUT /v1/tenants/{tenant}".
  template <typename F>
  void ForEachOperation(F f) {
    for (const auto& [path, item] : document_.at("paths").as_object()) {
      for (const auto& [method, operation] : item.as_object()) {
        if (method == "parameters") continue;
        std::string name(method);
        std::transform(name.begin(), name.end(), name.begin(), ::toupper);
        f(name + " " + std::string(path), operation);
      }
    }
  }

  const json::value& Operation(const std::string& name) {
    const json::value* found = nullptr;
    ForEachOperation([&](const std::string& each, const json::value& operation) {
      if (each == name) found = &operation;
    });
    if (found == nullptr) throw std::runtime_error(name + " is not in the document");
    return *found;
  }

  // That the answer is one that the document describes.
  void ExpectDescribed(const std::string& name, const HttpResponse& response) {
    const json::value* described =
        Operation(name).at("responses").as_object().if_contains(std::to_string(response.status));
    ASSERT_NE(described, nullptr) << name << " answers " << response.status << response.body;
    if (const json::value* reference = described->as_object().if_contains("$ref")) {
      described = &checker_.Resolve(*reference);
    }
    const json::value* content =
        described->at("content").as_object().if_contains("application/json");
    if (content == nullptr) return;
    EXPECT_EQ(checker_.Check(content->at("schema"), json::parse(response.body)), "")
        << name << " answers " << response.status << response.body;
    answered_[name].insert(response.status);
  }

  // `name` with the braces' parts as they are in `path`.
  void Try(const std::string& name, const std::string& path, int status,
           const std::string& body = "") {
    const HttpResponse response = Call(name.substr(0, name.find(' ')), path, body);
    EXPECT_EQ(response.status, status) << name << path << response.body;
    ExpectDescribed(name, response);
  }

  void TryOperators() {
    const std::string ci = R"({"name": "ci", "scope": "read"})";
    Try("POST /v1/operators", "/v1/operators", 201, ci);
    Try("POST /v1/operators", "/v1/operators", 409, ci);
    Try("GET /v1/operators", "/v1/operators", 200);
    Try("DELETE /v1/operators/{operator}", "/v1/operators/ci", 200);
    Try("DELETE /v1/operators/{operator}", "/v1/operators/ci", 404);
    Try("DELETE /v1/operators/{operator}", "/v1/operators/config", 409);
  }

  void TryLadder() {
    const std::string tenant = "/v1/tenants/{tenant}";
    Try("PUT " + tenant, "/v1/tenants/c", 200,
        R"({"guaranteed": 0, "limit": 9, "policy": {"name": "auto", "min_recovery": 0.9}})");
    Try("GET " + tenant, "/v1/tenants/c", 200);
    Try("GET " + tenant + "/explain", "/v1/tenants/c/explain", 200);
    Try("DELETE " + tenant, "/v1/tenants/c", 200);
  }

  const json::value document_;
  const Checker checker_;
  std::map<std::string, std::set<int>> answered_;
};

TEST_F(OpenApiTest, TheServerServesTheDocument) {
  const HttpResponse response = Call("GET", "/v1/openapi.json", "", "");
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(json::parse(response.body), document_);
  EXPECT_EQ(document_.at("openapi"), "3.1.0");
}

TEST_F(OpenApiTest, TheServerHasWhatTheDocumentHasAndNothingElse) {
  std::map<std::string, std::optional<Scope>> described;
  ForEachOperation([&](const std::string& name, const json::value& operation) {
    const json::value* scope = operation.as_object().if_contains("x-scope");
    described[name] = scope == nullptr
                          ? std::nullopt
                          : std::optional(*ParseScope(std::string(scope->as_string())));
    EXPECT_EQ(scope == nullptr, operation.as_object().contains("security")) << name;
  });
  EXPECT_EQ(described, Api::Operations());
}

TEST_F(OpenApiTest, TheCheckerFindsWhatIsWrong) {
  const json::value schema = json::parse(R"({"type": "object", "required": ["a"],
      "properties": {"a": {"type": ["integer", "null"]}, "b": {"enum": ["x"]}},
      "additionalProperties": false})");
  const auto check = [&](const std::string& text) {
    return checker_.Check(schema, json::parse(text));
  };
  EXPECT_EQ(check(R"({"a": 1, "b": "x"})"), "");
  EXPECT_EQ(check(R"({"a": null})"), "");
  for (const char* bad :
       {"[]", "{}", R"({"a": "1"})", R"({"a": 1, "b": "y"})", R"({"a": 1, "c": 1})"}) {
    EXPECT_NE(check(bad), "") << bad;
  }
  EXPECT_NE(checker_.Check(json::object{{"pattern", "x"}}, 1), "") << "a keyword it does not know";
}

TEST_F(OpenApiTest, EveryRefusalIsDescribed) {
  const HttpResponse made = Call("POST", "/v1/operators", R"({"name": "r", "scope": "read"})");
  const std::string reader(json::parse(made.body).at("token").as_string());
  for (const auto& [name, scope] : Api::Operations()) {
    if (!scope.has_value()) continue;
    const std::string method = name.substr(0, name.find(' '));
    const std::string path = name.substr(name.find(' ') + 1);
    ExpectDescribed(name, Call(method, path, "", ""));
    ExpectDescribed(name, Call(method, path + "?colour=red"));
    if (*scope > Scope::kRead) ExpectDescribed(name, Call(method, path, "", reader));
    EXPECT_TRUE(answered_[name].contains(400) && answered_[name].contains(401)) << name;
    EXPECT_EQ(answered_[name].contains(403), *scope > Scope::kRead) << name;
  }
}

TEST_F(OpenApiTest, EveryAnswerIsAsItIsDescribed) {
  const std::string budget =
      R"({"guaranteed": "2 MiB", "limit": "40 MiB", "floors": {"gpu-0": 1}})";
  const std::string file =
      R"({"version": 1, "tenants": [{"name": "b", "guaranteed": 0, "limit": 5}]})";
  const std::string tenant = "/v1/tenants/{tenant}", agent = "/v1/agents/{agent}";
  for (const std::string path : {"/metrics", "/healthz", "/readyz", "/v1/openapi.json"}) {
    Try("GET " + path, path, 200);
    answered_["GET " + path].insert(200);
  }
  Try("PUT " + tenant, "/v1/tenants/a?dry_run=true", 200, budget);
  Try("PUT " + tenant, "/v1/tenants/a", 200, budget);
  Try("PUT " + tenant, "/v1/tenants/a", 400, "{}");
  Try("PUT " + tenant, "/v1/tenants/a", 409, R"({"guaranteed": 0, "limit": 1, "revision": 7})");
  Try("POST /v1/apply", "/v1/apply?dry_run=true", 200, file);
  Try("POST /v1/apply", "/v1/apply", 200, file);
  Try("POST " + tenant + "/tokens", "/v1/tenants/a/tokens", 201);
  Try("POST " + tenant + "/tokens", "/v1/tenants/none/tokens", 404);

  TryLadder();
  FakeAgent fake(AgentOptions("gpu-0"));
  ASSERT_EQ(fake.Connect(), "ok");
  ASSERT_TRUE(fake.Exchange().ok());
  fake.tenant("a").held = fake.tenant("a").wanted = 30;
  fake.tenant("a").held = 10;
  fake.AddReclaim("a", 7);
  ASSERT_TRUE(fake.Exchange().ok());
  Try("GET /v1/tenants", "/v1/tenants", 200);
  Try("GET " + tenant, "/v1/tenants/a", 200);
  Try("GET " + tenant, "/v1/tenants/none", 404);
  Try("GET " + tenant + "/reclaims", "/v1/tenants/a/reclaims", 200);
  Try("GET " + tenant + "/reclaims", "/v1/tenants/none/reclaims", 404);
  Try("GET " + tenant + "/explain", "/v1/tenants/a/explain", 200);
  Try("GET " + tenant + "/explain", "/v1/tenants/none/explain", 404);
  const std::string id(Get("/v1/tenants/a").at("tokens").at(0).as_string());
  Try("DELETE " + tenant + "/tokens/{token}", "/v1/tenants/a/tokens/" + id, 200);
  Try("DELETE " + tenant + "/tokens/{token}", "/v1/tenants/a/tokens/" + id, 404);
  Try("GET /v1/agents", "/v1/agents", 200);
  Try("GET " + agent, "/v1/agents/gpu-0", 200);
  Try("GET " + agent, "/v1/agents/none", 404);
  for (const std::string verb : {"drain", "undrain"}) {
    const std::string name = "POST " + agent + "/" + verb, path = "/v1/agents/gpu-0/" + verb;
    Try(name, path + "?dry_run=true", 200);
    Try(name, path, 200);
    Try(name, "/v1/agents/none/" + verb, 404);
  }
  Try("DELETE " + tenant, "/v1/tenants/a?dry_run=true", 200);
  Try("DELETE " + tenant, "/v1/tenants/a", 202);
  Try("POST " + tenant + "/tokens", "/v1/tenants/a/tokens", 409);
  Try("DELETE " + tenant, "/v1/tenants/none", 404);
  Try("DELETE " + agent, "/v1/agents/gpu-0", 409);
  Try("DELETE " + agent, "/v1/agents/none", 404);
  fake.Disconnect();
  EXPECT_TRUE(
      Eventually([&] { return Call("DELETE", "/v1/agents/gpu-0?dry_run=true").status == 200; }));
  Try("DELETE " + agent, "/v1/agents/gpu-0?dry_run=true", 200);
  Try("DELETE " + agent, "/v1/agents/gpu-0", 200);
  Try("DELETE " + tenant, "/v1/tenants/b", 200);

  TryOperators();
  Try("GET /v1/audit", "/v1/audit?limit=256", 200);

  ForEachOperation([&](const std::string& name, const json::value& operation) {
    for (const auto& [status, response] : operation.at("responses").as_object()) {
      if (status != "200" && status != "201" && status != "202") continue;
      EXPECT_TRUE(answered_[name].contains(std::stoi(std::string(status))))
          << name << " " << status;
    }
  });
}

}  // namespace
}  // namespace kvpool

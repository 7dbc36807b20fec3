// JSON in and out.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/etcd_client.h"

#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/http_client.h"
#include "common/json.h"

namespace kvpool {
namespace {

namespace json = boost::json;

constexpr int64_t kPage = 256;  // keys of one answer of List

std::string Base64(const std::string& bytes) { return absl::Base64Escape(bytes); }

// A number, which is text or missing.
int64_t Number(const json::object& object, const char* field) {
  int64_t number = 0;
  const json::value* value = object.if_contains(field);
  if (value != nullptr && value->is_string()) {
    (void)absl::SimpleAtoi(std::string(value->get_string()), &number);
  }
  return number;
}

std::string Text(const json::object& object, const char* field) {
  const json::value* value = object.if_contains(field);
  return value != nullptr && value->is_string() ? std::string(value->get_string()) : "";
}

std::string Decoded(const json::object& object, const char* field) {
  std::string bytes;
  (void)absl::Base64Unescape(Text(object, field), &bytes);
  return bytes;
}

// An object in a field, empty when it is missing.
const json::object& Child(const json::object& object, const char* field) {
  static const json::object none;
  const json::value* value = object.if_contains(field);
  return value != nullptr && value->is_object() ? value->get_object() : none;
}

std::vector<EtcdKey> Keys(const json::object& range) {
  std::vector<EtcdKey> keys;
  const json::value* list = range.if_contains("kvs");
  if (list == nullptr || !list->is_array()) return keys;
  for (const json::value& item : list->get_array()) {
    if (!item.is_object()) continue;
    const json::object& key = item.get_object();
    keys.push_back({.key = Decoded(key, "key"),
                    .value = Decoded(key, "value"),
                    .create_revision = Number(key, "create_revision"),
                    .mod_revision = Number(key, "mod_revision")});
  }
  return keys;
}

json::object ToJson(const EtcdWrite& write) {
  if (!write.value.has_value()) {
    return {{"request_delete_range", {{"key", Base64(write.key)}}}};
  }
  return {{"request_put",
           {{"key", Base64(write.key)},
            {"value", Base64(*write.value)},
            {"lease", std::to_string(write.lease)}}}};
}

json::object Comparison(const EtcdGuard& guard, const char* target, const char* field,
                        int64_t revision) {
  return {{"key", Base64(guard.key)},
          {"target", target},
          {"result", "EQUAL"},
          {field, std::to_string(revision)}};
}

// {"error": ..., "code": N}: N is gRPC's, as absl's are.
absl::Status Refusal(const HostPort& server, int http_status, const json::object& answer) {
  const json::value* code = answer.if_contains("code");
  const std::string text = absl::StrCat(ToString(server), ": ", Text(answer, "error"));
  if (code != nullptr && code->is_int64()) {
    return absl::Status(static_cast<absl::StatusCode>(code->get_int64()), text);
  }
  return absl::UnavailableError(absl::StrCat(text, " (HTTP status ", http_status, ")"));
}

}  // namespace

bool IsUnknownOutcome(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) || absl::IsUnknown(status);
}

absl::StatusOr<json::object> EtcdClient::Post(const std::string& path, const json::object& body) {
  HttpRequest request{.method = "POST", .path = path, .body = json::serialize(body)};
  if (!token_.empty()) request.headers["authorization"] = token_;
  absl::Status error;
  for (size_t tried = 0; tried < options_.endpoints.size(); ++tried) {
    const HostPort& server = options_.endpoints[endpoint_ % options_.endpoints.size()];
    const auto response = HttpCall(server, request, options_.deadline, options_.tls.get());
    if (response.ok()) {
      auto answer = ParseJson(response->body, limits::kHttpReplyBytes);
      if (!answer.ok() || !answer->is_object()) {
        return absl::FailedPreconditionError(
            absl::StrCat(ToString(server),
                         " does not answer as etcd does; name the client port of"
                         " an etcd 3.4 with its JSON gateway"));
      }
      if (response->status == 200) return std::move(answer->get_object());
      error = Refusal(server, response->status, answer->get_object());
    } else {
      error = response.status();
    }
    if (!IsUnknownOutcome(error)) return error;
    ++endpoint_;
    // What was sent may yet be carried out: whether to repeat it is the caller's to say.
    if (response.ok() || !absl::IsUnavailable(error)) return error;
  }
  return error;
}

absl::Status EtcdClient::Authenticate() {
  token_.clear();
  const auto answer =
      Post("/v3/auth/authenticate", {{"name", options_.user}, {"password", options_.password}});
  if (!answer.ok()) return answer.status();
  token_ = Text(*answer, "token");
  return absl::OkStatus();
}

absl::StatusOr<json::object> EtcdClient::Call(const std::string& path, const json::object& body) {
  if (options_.user.empty()) return Post(path, body);
  if (token_.empty()) {
    if (absl::Status status = Authenticate(); !status.ok()) return status;
  }
  absl::StatusOr<json::object> answer = Post(path, body);
  if (!absl::IsUnauthenticated(answer.status())) return answer;
  // Its tokens end when they are not used, and when it restarts.
  if (absl::Status status = Authenticate(); !status.ok()) return status;
  return Post(path, body);
}

absl::StatusOr<EtcdKey> EtcdClient::Get(const std::string& key) {
  const auto answer = Call("/v3/kv/range", {{"key", Base64(key)}});
  if (!answer.ok()) return answer.status();
  const std::vector<EtcdKey> keys = Keys(*answer);
  return keys.empty() ? EtcdKey{.key = key} : keys[0];
}

absl::StatusOr<std::vector<EtcdKey>> EtcdClient::List(const std::string& prefix) {
  std::string end = prefix;
  ++end.back();
  std::vector<EtcdKey> all;
  std::string begin = prefix;
  while (true) {
    const auto answer = Call(
        "/v3/kv/range",
        {{"key", Base64(begin)}, {"range_end", Base64(end)}, {"limit", std::to_string(kPage)}});
    if (!answer.ok()) return answer.status();
    std::vector<EtcdKey> page = Keys(*answer);
    if (page.empty()) return all;
    begin = page.back().key + '\0';
    all.insert(all.end(), std::make_move_iterator(page.begin()),
               std::make_move_iterator(page.end()));
  }
}

absl::StatusOr<EtcdTxn> EtcdClient::Txn(const EtcdGuard& guard,
                                        const std::vector<EtcdWrite>& writes) {
  json::array compare{Comparison(guard, "CREATE", "create_revision", guard.create_revision)};
  if (guard.mod_revision.has_value()) {
    compare.push_back(Comparison(guard, "MOD", "mod_revision", *guard.mod_revision));
  }
  json::array success;
  for (const EtcdWrite& write : writes) success.push_back(ToJson(write));
  const json::object read{{"request_range", {{"key", Base64(guard.key)}}}};
  const auto answer =
      Call("/v3/kv/txn",
           {{"compare", std::move(compare)}, {"success", std::move(success)}, {"failure", {read}}});
  if (!answer.ok()) return answer.status();
  EtcdTxn txn{.succeeded = answer->contains("succeeded"),
              .revision = Number(Child(*answer, "header"), "revision")};
  if (txn.succeeded) return txn;
  const json::value* responses = answer->if_contains("responses");
  if (responses != nullptr && responses->is_array() && !responses->get_array().empty() &&
      responses->get_array()[0].is_object()) {
    std::vector<EtcdKey> keys =
        Keys(Child(responses->get_array()[0].get_object(), "response_range"));
    if (!keys.empty()) txn.guarded = std::move(keys[0]);
  }
  return txn;
}

absl::StatusOr<EtcdClient::Lease> EtcdClient::Grant(Duration ttl) {
  const auto answer =
      Call("/v3/lease/grant",
           {{"TTL", std::to_string(std::chrono::ceil<std::chrono::seconds>(ttl).count())}});
  if (!answer.ok()) return answer.status();
  return Lease{.id = Number(*answer, "ID"), .ttl = std::chrono::seconds(Number(*answer, "TTL"))};
}

absl::StatusOr<std::optional<Duration>> EtcdClient::KeepAlive(int64_t lease) {
  const auto answer = Call("/v3/lease/keepalive", {{"ID", std::to_string(lease)}});
  if (!answer.ok()) return answer.status();
  const int64_t seconds = Number(Child(*answer, "result"), "TTL");
  if (seconds <= 0) return std::optional<Duration>();
  return std::optional<Duration>(std::chrono::seconds(seconds));
}

absl::Status EtcdClient::Revoke(int64_t lease) {
  const absl::Status status = Call("/v3/lease/revoke", {{"ID", std::to_string(lease)}}).status();
  return absl::IsNotFound(status) ? absl::OkStatus() : status;
}

}  // namespace kvpool

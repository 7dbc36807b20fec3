// HTTP outcomes as Status.
//
// SPDX-License-Identifier: Apache-2.0
#include "client/cli/api_client.h"

#include <algorithm>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "common/http_client.h"
#include "common/json.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

constexpr auto kDeadline = std::chrono::seconds(limits::kHttpSeconds);

absl::StatusCode CodeOf(int http_status) {
  switch (http_status) {
    case 401:
    case 403:
      return absl::StatusCode::kPermissionDenied;
    case 404:
      return absl::StatusCode::kNotFound;
    case 409:
      return absl::StatusCode::kAborted;
    case 503:
      return absl::StatusCode::kUnavailable;
    default:
      return http_status < 500 ? absl::StatusCode::kFailedPrecondition
                               : absl::StatusCode::kInternal;
  }
}

// A field of {"error": {"code": ..., "message": ...}}, as JsonError writes it; else empty.
std::string ErrorField(const boost::json::object& answer, const char* field) {
  const boost::json::value* error = answer.if_contains("error");
  const boost::json::value* value =
      error != nullptr && error->is_object() ? error->get_object().if_contains(field) : nullptr;
  return value != nullptr && value->is_string() ? std::string(value->get_string()) : "";
}

}  // namespace

absl::StatusOr<boost::json::object> ApiClient::Call(const std::string& method,
                                                    const std::string& path,
                                                    const std::string& body) const {
  const size_t question = std::min(path.find('?'), path.size());
  HttpRequest request{.method = method, .path = path.substr(0, question), .body = body};
  if (question < path.size()) request.query = path.substr(question + 1);
  if (!token_.empty()) request.headers["authorization"] = "Bearer " + token_;
  absl::Status error, silence;  // what a server said counts for more than that another is away
  for (const HostPort& server : servers_) {
    const auto response = HttpCall(server, request, kDeadline, tls_.get());
    if (!response.ok()) {
      silence = absl::UnavailableError(absl::StrCat("no answer from ", ToString(server), ": ",
                                                    std::string(response.status().message()),
                                                    " (is kvpool-manager running? see --server)"));
      if (absl::IsUnavailable(response.status()) || method == "GET") continue;
      return silence;
    }
    auto json = ParseJson(response->body, limits::kHttpReplyBytes);
    if (!json.ok() || !json->is_object()) {
      return absl::InternalError(
          absl::StrCat("the answer of ", ToString(server),
                       " makes no sense; is it a kvpool-manager's http port?"));
    }
    const boost::json::object& answer = json->get_object();
    if (response->status < 400) return answer;
    const std::string message = ErrorField(answer, "message");
    error = absl::Status(
        CodeOf(response->status),
        !message.empty() ? message
                         : absl::StrCat("the server answered with HTTP status ", response->status));
    if (ErrorField(answer, "code") != "not_leader") return error;
  }
  return error.ok() ? silence : error;
}

absl::StatusOr<boost::json::object> ApiClient::Get(const std::string& path) const {
  return Call("GET", path, "");
}

absl::StatusOr<boost::json::object> ApiClient::Put(const std::string& path,
                                                   const boost::json::object& body) const {
  return Call("PUT", path, boost::json::serialize(body));
}

absl::StatusOr<boost::json::object> ApiClient::Post(const std::string& path,
                                                    const boost::json::object& body) const {
  return Call("POST", path, boost::json::serialize(body));
}

absl::StatusOr<boost::json::object> ApiClient::Delete(const std::string& path) const {
  return Call("DELETE", path, "");
}

}  // namespace kvpool

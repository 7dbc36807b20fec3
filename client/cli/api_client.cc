// See api_client.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "client/cli/api_client.h"

#include <chrono>

#include "absl/strings/str_cat.h"
#include "common/http_client.h"
#include "common/json.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

constexpr std::chrono::seconds kDeadline(10);

// The server's message, or the start of whatever it sent instead.
std::string MessageIn(const HttpResponse& response) {
  const auto json = ParseJson(response.body, limits::kHttpReplyBytes);
  if (json.ok() && json->is_object()) {
    const boost::json::value* error = json->as_object().if_contains("error");
    if (error != nullptr && error->is_object()) {
      const boost::json::value* message = error->as_object().if_contains("message");
      if (message != nullptr && message->is_string()) return message->as_string().c_str();
    }
  }
  return absl::StrCat("HTTP status ", response.status, " ", response.body.substr(0, 200));
}

absl::Status ErrorOf(const HttpResponse& response) {
  const std::string message = MessageIn(response);
  switch (response.status) {
    case 400:
    case 413:
      return absl::InvalidArgumentError(message);
    case 401:
    case 403:
      return absl::UnauthenticatedError(
          absl::StrCat(message, " (pass --token-file, or set KVPOOL_TOKEN_FILE)"));
    case 404:
      return absl::NotFoundError(message);
    case 409:
      return absl::AbortedError(message);
    default:
      return absl::InternalError(message);
  }
}

}  // namespace

ExitCode ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return ExitCode::kOk;
    case absl::StatusCode::kInvalidArgument:
      return ExitCode::kUsage;
    case absl::StatusCode::kNotFound:
      return ExitCode::kNotFound;
    case absl::StatusCode::kAborted:
      return ExitCode::kConflict;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
      return ExitCode::kUnreachable;
    default:
      return ExitCode::kFailure;
  }
}

ApiClient::ApiClient(HostPort server, std::string token)
    : server_(std::move(server)), token_(std::move(token)) {}

absl::StatusOr<boost::json::value> ApiClient::Call(const std::string& method,
                                                   const std::string& path,
                                                   const boost::json::value& body) const {
  HttpRequest request{.method = method, .path = path};
  request.headers["authorization"] = "Bearer " + token_;
  if (!body.is_null()) {
    request.headers["content-type"] = "application/json";
    request.body = boost::json::serialize(body);
  }
  const absl::StatusOr<HttpResponse> response = HttpCall(server_, request, kDeadline);
  if (!response.ok()) {
    return absl::Status(response.status().code(),
                        absl::StrCat("no answer from the manager at ", ToString(server_), ": ",
                                     response.status().message()));
  }
  if (response->status / 100 != 2) return ErrorOf(*response);
  if (response->body.empty()) return boost::json::value(nullptr);
  return ParseJson(response->body, limits::kHttpReplyBytes);
}

}  // namespace kvpool

// The table of codes.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/http_replies.h"

#include <string>

#include "common/json.h"

namespace kvpool {
namespace {

struct HttpError {
  int status;
  const char* code;
};

HttpError ToHttp(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kInvalidArgument:
      return {400, "invalid"};
    case absl::StatusCode::kUnauthenticated:
      return {401, "unauthenticated"};
    case absl::StatusCode::kPermissionDenied:
      return {403, "forbidden"};
    case absl::StatusCode::kNotFound:
      return {404, "not_found"};
    case absl::StatusCode::kUnimplemented:
      return {405, "method_not_allowed"};
    case absl::StatusCode::kAborted:
      return {409, "stale_revision"};
    case absl::StatusCode::kFailedPrecondition:
      return {409, "in_use"};
    case absl::StatusCode::kAlreadyExists:
      return {409, "exists"};
    case absl::StatusCode::kResourceExhausted:
      return {422, "too_many"};
    case absl::StatusCode::kUnavailable:
      return {503, "not_ready"};
    case absl::StatusCode::kCancelled:
      return {503, "not_leader"};
    case absl::StatusCode::kUnknown:
      return {503, "unknown_outcome"};
    default:
      return {500, "internal"};
  }
}

}  // namespace

HttpResponse JsonResponse(const boost::json::object& json, int status) {
  return {.status = status, .body = boost::json::serialize(json) + "\n"};
}

HttpResponse ErrorResponse(const absl::Status& status) {
  const auto [http, code] = ToHttp(status.code());
  HttpResponse response{.status = http, .body = JsonError(code, std::string(status.message()))};
  if (http == 401) response.headers["WWW-Authenticate"] = "Bearer";
  return response;
}

}  // namespace kvpool

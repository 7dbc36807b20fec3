// What the operator API answers: JSON, and outcomes as HTTP. Values, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/json.hpp>

#include "absl/status/status.h"
#include "common/http.h"

namespace kvpool {

HttpResponse JsonResponse(const boost::json::object& json, int status = 200);

// {"error": {"code": "not_found", "message": "..."}}, with the status that the code calls for.
HttpResponse ErrorResponse(const absl::Status& status);

}  // namespace kvpool

// One blocking HTTP/1.1 exchange with a deadline: for the operator's CLI and for tests. Any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "absl/status/statusor.h"
#include "common/address.h"
#include "common/clock.h"
#include "common/http.h"
#include "common/tls.h"

namespace kvpool {

// Connects, sends, and reads the whole response, whatever its status. Unavailable when the server
// cannot be reached: nothing was sent. Unknown when it breaks off, DeadlineExceeded when it takes
// longer than `deadline`, ResourceExhausted for a response above limits::kHttpReplyBytes. With
// `tls` it is HTTPS: the server's certificate must be for the host as it is written in `server`, or
// nothing is sent (Unavailable).
absl::StatusOr<HttpResponse> HttpCall(const HostPort& server, const HttpRequest& request,
                                      Duration deadline, TlsSource* tls = nullptr);

}  // namespace kvpool

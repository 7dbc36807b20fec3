// The document of the operator API, OpenAPI 3.1: openapi.json, put into the program when it is
// built. A test holds it against the running server. Any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace kvpool {

extern const char kOpenApiDocument[];

}  // namespace kvpool

// One HTTP request and one response, as the server hands them to a handler and the client to its
// caller. Values, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <string>

namespace kvpool {

// Names in lower case; a header that came twice is joined by ", ".
using HttpHeaders = std::map<std::string, std::string>;

struct HttpRequest {
  std::string method = "GET";
  std::string path = "/";  // as sent, without the query; begins with '/'
  std::string query;       // what followed '?'
  HttpHeaders headers;
  std::string body;

  // The value of a header, empty when it is not there.
  std::string Header(const std::string& lower_case_name) const {
    const auto found = headers.find(lower_case_name);
    return found == headers.end() ? "" : found->second;
  }
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  HttpHeaders headers;  // further ones
};

}  // namespace kvpool

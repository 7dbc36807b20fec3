// The policies that an operator can name, as `kvpoolctl policies` prints them. They are built in:
// no manager is asked. Values, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/json.hpp>
#include <string>

namespace kvpool {

// {"policies": [{"name", "summary", "parameters": [{"name", "unit", "description", "default",
// "allowed", and what it is made of: "min" and "max", or "choices"}]}]}
boost::json::object PolicyDocument();
// A line for each policy, then one for each of its own parameters; at the end those of all of them.
std::string PolicyTable();

}  // namespace kvpool

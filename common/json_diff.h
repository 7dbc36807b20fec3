// Two JSON objects field by field: what a change changes. Values, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/json.hpp>
#include <string>
#include <vector>

namespace kvpool {

struct FieldChange {
  std::string field;                 // "limit", "policy.budget"
  boost::json::value before, after;  // null: there is no such field

  bool operator==(const FieldChange&) const = default;
};

// The fields that differ, by name; objects inside are looked into, everything else is compared
// whole. A value that is no object has no fields.
std::vector<FieldChange> Differences(const boost::json::value& before,
                                     const boost::json::value& after);

// [{"field", "before", "after"}]
boost::json::array ToJson(const std::vector<FieldChange>& changes);

}  // namespace kvpool

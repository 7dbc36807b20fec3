// Flattened, then merged by name.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/json_diff.h"

#include <map>

namespace kvpool {
namespace {

using Fields = std::map<std::string, boost::json::value>;

void Flatten(const std::string& prefix, const boost::json::object& object, Fields& fields) {
  for (const auto& [key, value] : object) {
    const std::string name = prefix + std::string(key);
    if (value.is_object()) {
      Flatten(name + ".", value.get_object(), fields);
    } else {
      fields[name] = value;
    }
  }
}

Fields Flattened(const boost::json::value& value) {
  Fields fields;
  if (value.is_object()) Flatten("", value.get_object(), fields);
  return fields;
}

}  // namespace

std::vector<FieldChange> Differences(const boost::json::value& before,
                                     const boost::json::value& after) {
  std::map<std::string, FieldChange> merged;
  for (const auto& [field, value] : Flattened(before)) merged[field].before = value;
  for (const auto& [field, value] : Flattened(after)) merged[field].after = value;
  std::vector<FieldChange> changes;
  for (auto& [field, change] : merged) {
    if (change.before == change.after) continue;
    change.field = field;
    changes.push_back(change);
  }
  return changes;
}

boost::json::array ToJson(const std::vector<FieldChange>& changes) {
  boost::json::array json;
  for (const FieldChange& change : changes) {
    json.push_back({{"field", change.field}, {"before", change.before}, {"after", change.after}});
  }
  return json;
}

}  // namespace kvpool

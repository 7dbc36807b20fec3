// JSON from outside, as Boost.JSON values: bounded in size and depth, no duplicate or unknown keys,
// typed fields with errors that name the field. Values, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/units.h"
#include "proto/limits.h"

namespace kvpool {

// Parses one value. InvalidArgument says at which byte. A duplicate key keeps its last value in
// JSON's own rules; here it is an error.
absl::StatusOr<boost::json::value> ParseJson(std::string_view text,
                                             size_t longest = limits::kHttpBodyBytes);

// Reads the fields of one object and then insists that none is left. `what` names the object in
// errors ("tenant").
class JsonObject {
 public:
  // Fails when the value is no object. The value must outlive this.
  static absl::StatusOr<JsonObject> From(const boost::json::value& value, std::string what);
  static absl::StatusOr<JsonObject> From(boost::json::value&& value, std::string what) = delete;

  // Whether the field is there; it is allowed from now on.
  bool Has(std::string_view field) { return Take(field) != nullptr; }
  std::vector<std::string> Keys() const;

  absl::StatusOr<std::string> Text(std::string_view field, size_t longest = limits::kHttpBodyBytes);
  absl::StatusOr<int64_t> Integer(std::string_view field, int64_t min, int64_t max);
  // An integer of bytes, or text as ParseBytes takes it.
  absl::StatusOr<Bytes> Quantity(std::string_view field, Bytes min, Bytes max);
  // Text such as "250 ms".
  absl::StatusOr<Duration> Span(std::string_view field, Duration min, Duration max);
  // A whole number, a number or text.
  absl::StatusOr<std::variant<int64_t, double, std::string>> Scalar(std::string_view field);
  // An object in a field; `expected` says in words what belongs there.
  absl::StatusOr<JsonObject> Child(std::string_view field, const std::string& expected);
  // A list of names and objects in a field, at most `longest` bytes a name.
  absl::StatusOr<std::vector<std::variant<std::string, JsonObject>>> TextsOrObjects(
      std::string_view field, size_t longest, const std::string& expected);
  // Any value that is there, for nested ones; null when it is missing.
  const boost::json::value* Take(std::string_view field);

  // That every field has been read: InvalidArgument names one that has not.
  absl::Status Finish() const;

  // An error about the whole object.
  absl::Status Refusal(const std::string& message) const {
    return absl::InvalidArgumentError(message);
  }

 private:
  JsonObject(const boost::json::object& object, std::string what)
      : object_(&object), what_(std::move(what)) {}

  static boost::json::string_view Name(std::string_view field) {
    return {field.data(), field.size()};
  }
  absl::StatusOr<const boost::json::value*> Require(std::string_view field);
  absl::Status Error(std::string_view field, const std::string& message) const;

  const boost::json::object* object_;
  std::string what_;
  std::vector<std::string> known_;
};

// {"error": {"code": ..., "message": ...}}, what every refusal of our HTTP servers says.
std::string JsonError(const std::string& code, const std::string& message);

}  // namespace kvpool

// Parsing with limits, and the field readers.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/json.h"

#include <algorithm>
#include <boost/json/basic_parser_impl.hpp>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/quantity.h"
#include "common/yaml.h"

namespace kvpool {
namespace {

namespace json = boost::json;

// A handler for Boost's push parser that looks for one thing only: a key that comes twice.
struct DuplicateKeys {
  static constexpr size_t max_object_size = SIZE_MAX;
  static constexpr size_t max_array_size = SIZE_MAX;
  static constexpr size_t max_key_size = SIZE_MAX;
  static constexpr size_t max_string_size = SIZE_MAX;

  std::vector<std::set<std::string>> objects;
  std::string key;        // parts of the key being read
  std::string duplicate;  // the first one found

  bool on_document_begin(json::error_code&) { return true; }
  bool on_document_end(json::error_code&) { return true; }
  bool on_array_begin(json::error_code&) { return true; }
  bool on_array_end(size_t, json::error_code&) { return true; }
  bool on_object_begin(json::error_code&) { return objects.emplace_back(), true; }
  bool on_object_end(size_t, json::error_code&) { return objects.pop_back(), true; }
  bool on_key_part(json::string_view part, size_t, json::error_code&) {
    return key.append(part.data(), part.size()), true;
  }
  bool on_key(json::string_view part, size_t, json::error_code&) {
    key.append(part.data(), part.size());
    if (duplicate.empty() && !objects.back().insert(key).second) duplicate = key;
    return key.clear(), true;
  }
  bool on_string_part(json::string_view, size_t, json::error_code&) { return true; }
  bool on_string(json::string_view, size_t, json::error_code&) { return true; }
  bool on_number_part(json::string_view, json::error_code&) { return true; }
  bool on_int64(int64_t, json::string_view, json::error_code&) { return true; }
  bool on_uint64(uint64_t, json::string_view, json::error_code&) { return true; }
  bool on_double(double, json::string_view, json::error_code&) { return true; }
  bool on_bool(bool, json::error_code&) { return true; }
  bool on_null(json::error_code&) { return true; }
  bool on_comment_part(json::string_view, json::error_code&) { return true; }
  bool on_comment(json::string_view, json::error_code&) { return true; }
};

}  // namespace

absl::StatusOr<json::value> ParseJson(std::string_view text, size_t longest) {
  if (text.size() > longest) {
    return absl::InvalidArgumentError(
        absl::StrCat("the JSON text is ", text.size(), " bytes long; at most ", longest));
  }
  json::parse_options options;
  options.max_depth = limits::kJsonDepth;
  json::error_code error;
  json::stream_parser parser({}, options);
  const size_t read = parser.write_some(text.data(), text.size(), error);
  if (!error) parser.finish(error);
  if (!error && text.find_first_not_of(" \t\r\n", read) != std::string_view::npos) {
    error = json::error::extra_data;
  }
  if (error) {
    return absl::InvalidArgumentError(
        absl::StrCat("not JSON at byte ", read, ": ", error.message()));
  }
  json::basic_parser<DuplicateKeys> keys(options);
  keys.write_some(false, text.data(), text.size(), error);
  if (!keys.handler().duplicate.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("JSON key \"", keys.handler().duplicate, "\" is there twice"));
  }
  return parser.release();
}

absl::StatusOr<JsonObject> JsonObject::From(const json::value& value, std::string what) {
  if (!value.is_object()) return absl::InvalidArgumentError(what + " must be a JSON object");
  return JsonObject(value.get_object(), std::move(what));
}

absl::Status JsonObject::Error(std::string_view field, const std::string& message) const {
  return absl::InvalidArgumentError(
      absl::StrCat(what_, ": field \"", std::string(field), "\" ", message));
}

const json::value* JsonObject::Take(std::string_view field) {
  if (std::find(known_.begin(), known_.end(), field) == known_.end()) known_.emplace_back(field);
  return object_->if_contains(Name(field));
}

absl::StatusOr<const json::value*> JsonObject::Require(std::string_view field) {
  const json::value* const value = Take(field);
  if (value == nullptr) return Error(field, "is missing");
  return value;
}

absl::StatusOr<std::string> JsonObject::Text(std::string_view field, size_t longest) {
  const auto value = Require(field);
  if (!value.ok()) return value.status();
  if (!(*value)->is_string()) return Error(field, "must be a string");
  const json::string& text = (*value)->get_string();
  if (text.size() > longest) {
    return Error(field, absl::StrCat("must be at most ", longest, " bytes long"));
  }
  return std::string(text.data(), text.size());
}

absl::StatusOr<int64_t> JsonObject::Integer(std::string_view field, int64_t min, int64_t max) {
  const auto value = Require(field);
  if (!value.ok()) return value.status();
  json::error_code error;
  const int64_t number = (*value)->to_number<int64_t>(error);
  if (error || (*value)->is_double() || number < min || number > max) {
    return Error(field, absl::StrCat("must be a whole number within ", min, "..", max));
  }
  return number;
}

absl::StatusOr<Bytes> JsonObject::Quantity(std::string_view field, Bytes min, Bytes max) {
  const auto value = Require(field);
  if (!value.ok()) return value.status();
  // A JSON integer counts bytes; text says its unit.
  const auto bytes =
      (*value)->is_int64() ? absl::StatusOr<Bytes>(Bytes((*value)->get_int64()))
      : (*value)->is_string()
          ? ParseBytes(std::string((*value)->get_string()))
          : absl::InvalidArgumentError(
                "must be an integer of bytes, or text with a unit such as \"12 GiB\"");
  if (!bytes.ok()) return Error(field, std::string(bytes.status().message()));
  if (*bytes < min || *bytes > max) {
    return Error(field, absl::StrCat("is outside ", FormatBytes(min), "..", FormatBytes(max)));
  }
  return bytes;
}

absl::StatusOr<Duration> JsonObject::Span(std::string_view field, Duration min, Duration max) {
  const auto text = Text(field);
  if (!text.ok()) return text.status();
  const auto duration = ParseDuration(*text);
  if (!duration.ok()) return Error(field, std::string(duration.status().message()));
  if (*duration < min || *duration > max) {
    return Error(field,
                 absl::StrCat("is outside ", FormatDuration(min), "..", FormatDuration(max)));
  }
  return duration;
}

absl::StatusOr<std::variant<int64_t, double, std::string>> JsonObject::Scalar(
    std::string_view field) {
  const auto value = Require(field);
  if (!value.ok()) return value.status();
  if ((*value)->is_string()) return std::string((*value)->get_string());
  if ((*value)->is_double()) return (*value)->get_double();
  return Integer(field, std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max());
}

absl::StatusOr<JsonObject> JsonObject::Child(std::string_view field, const std::string& expected) {
  const auto value = Require(field);
  if (!value.ok()) return value.status();
  if (!(*value)->is_object()) return Error(field, "must be an object: " + expected);
  return From(**value, std::string(field));
}

absl::StatusOr<std::vector<std::variant<std::string, JsonObject>>> JsonObject::TextsOrObjects(
    std::string_view field, size_t longest, const std::string& expected) {
  const auto value = Require(field);
  if (!value.ok()) return value.status();
  if (!(*value)->is_array()) return Error(field, "must be " + expected);
  std::vector<std::variant<std::string, JsonObject>> items;
  for (const boost::json::value& item : (*value)->get_array()) {
    if (item.is_string() && item.get_string().size() <= longest) {
      items.emplace_back(std::string(item.get_string()));
    } else if (item.is_object()) {
      items.emplace_back(JsonObject(item.get_object(), std::string(field)));
    } else {
      return Error(field, "must be " + expected);
    }
  }
  return items;
}

std::vector<std::string> JsonObject::Keys() const {
  std::vector<std::string> keys;
  for (const auto& entry : *object_) keys.emplace_back(entry.key());
  return keys;
}

absl::Status JsonObject::Finish() const {
  for (const auto& entry : *object_) {
    const std::string name(entry.key());
    if (std::find(known_.begin(), known_.end(), name) == known_.end()) {
      return Error(name, absl::StrCat("is unknown; allowed are ", JoinNames(known_)));
    }
  }
  return absl::OkStatus();
}

std::string JsonError(const std::string& code, const std::string& message) {
  return json::serialize(json::object{{"error", {{"code", code}, {"message", message}}}});
}

}  // namespace kvpool

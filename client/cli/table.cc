// See table.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "client/cli/table.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace kvpool {
namespace {

// The field, or nullptr when it is missing or null.
const boost::json::value* Field(const boost::json::object& object, const char* field) {
  const boost::json::value* value = object.if_contains(field);
  return value == nullptr || value->is_null() ? nullptr : value;
}

double Number(const boost::json::value& value) {
  boost::system::error_code error;
  const double number = value.to_number<double>(error);
  return error ? 0 : number;
}

}  // namespace

std::string FormatTable(const std::vector<Column>& columns,
                        const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (size_t c = 0; c < columns.size(); ++c) {
    size_t width = columns[c].header.size();
    for (const auto& row : rows) width = std::max(width, row[c].size());
    widths.push_back(width);
  }
  std::string text;
  const auto add = [&](size_t c, const std::string& cell) {
    const std::string padding(widths[c] - cell.size(), ' ');
    const bool last = c + 1 == columns.size();
    if (columns[c].align == Column::Align::kRight) {
      absl::StrAppend(&text, padding, cell);
    } else {
      absl::StrAppend(&text, cell, last ? "" : padding);
    }
    absl::StrAppend(&text, last ? "\n" : "  ");
  };
  for (size_t c = 0; c < columns.size(); ++c) add(c, columns[c].header);
  for (const auto& row : rows) {
    for (size_t c = 0; c < columns.size(); ++c) add(c, row[c]);
  }
  return text;
}

std::string TextCell(const boost::json::object& object, const char* field) {
  const boost::json::value* value = Field(object, field);
  if (value == nullptr) return "-";
  if (value->is_string()) return value->as_string().c_str();
  if (value->is_bool()) return value->as_bool() ? "yes" : "no";
  return boost::json::serialize(*value);
}

std::string BytesCell(const boost::json::object& object, const char* field) {
  const boost::json::value* value = Field(object, field);
  if (value == nullptr) return "-";
  double bytes = Number(*value);
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  for (; bytes >= 1024 && unit + 1 < std::size(kUnits); ++unit) bytes /= 1024;
  return unit == 0 ? absl::StrFormat("%.0f B", bytes)
                   : absl::StrFormat("%.1f %s", bytes, kUnits[unit]);
}

std::string RatioCell(const boost::json::object& object, const char* field) {
  const boost::json::value* value = Field(object, field);
  return value == nullptr ? "-" : absl::StrFormat("%.3f", Number(*value));
}

std::string AgeCell(const boost::json::object& object, const char* field) {
  const boost::json::value* value = Field(object, field);
  if (value == nullptr) return "-";
  const double seconds = Number(*value) / 1000;
  if (seconds < 1) return absl::StrFormat("%.0f ms", seconds * 1000);
  if (seconds < 120) return absl::StrFormat("%.0f s", seconds);
  if (seconds < 7200) return absl::StrFormat("%.0f min", seconds / 60);
  return absl::StrFormat("%.0f h", seconds / 3600);
}

std::string PolicyCell(const boost::json::object& tenant) {
  const boost::json::value* policy = Field(tenant, "policy");
  if (policy == nullptr || !policy->is_object()) return "-";
  std::string text = TextCell(policy->as_object(), "name");
  const char* separator = "(";
  for (const auto& field : policy->as_object()) {
    if (field.key() == "name") continue;
    absl::StrAppend(&text, separator, std::string(field.key()), "=",
                    boost::json::serialize(field.value()));
    separator = ",";
  }
  if (*separator == ',') text += ")";
  return text;
}

}  // namespace kvpool

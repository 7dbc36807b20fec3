// Plain tables for terminals: upper-case headers, no borders, numbers to the right. Pure.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/json.hpp>
#include <string>
#include <vector>

namespace kvpool {

struct Column {
  std::string header;
  enum class Align { kLeft, kRight } align = Align::kLeft;
};

// Rows of as many cells as there are columns; each line ends with a newline.
std::string FormatTable(const std::vector<Column>& columns,
                        const std::vector<std::vector<std::string>>& rows);

// Cells from the API's JSON. A missing or null field gives "-".
std::string TextCell(const boost::json::object& object, const char* field);
std::string BytesCell(const boost::json::object& object, const char* field);  // "12.0 MiB"
std::string RatioCell(const boost::json::object& object, const char* field);  // "0.953"
// How long ago, from milliseconds: "350 ms", "12 s", "3 min", "5 h".
std::string AgeCell(const boost::json::object& object, const char* field);
// "scissorhands(budget=96,...)" from {"name": ..., ...}.
std::string PolicyCell(const boost::json::object& tenant);

}  // namespace kvpool

// Plain text tables for people: upper-case headers, no borders, numbers to the right. Values, any
// thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace kvpool {

enum class Align { kLeft, kRight };

class Table {
 public:
  struct Column {
    std::string header;
    Align align = Align::kLeft;
  };

  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

  // One cell for each column.
  void Add(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  bool empty() const { return rows_.empty(); }
  // Every line begins with `indent` spaces and ends in a newline.
  std::string ToText(size_t indent = 0) const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

// "12.5 MiB", "980 B", rounded to what a person reads.
std::string HumanBytes(int64_t bytes);
// "340ms", "12s", "5m", "3h", "2d".
std::string HumanAge(int64_t millis);
// A row of `width` characters of which used / whole are filled.
std::string Bar(int64_t used, int64_t whole, size_t width);

}  // namespace kvpool

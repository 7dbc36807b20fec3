// Lines, fields, and what is wrong with them.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/arrivals.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <fstream>
#include <numeric>
#include <optional>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/json.h"
#include "proto/limits.h"

namespace kvpool::sim {
namespace {

constexpr int64_t kMostMillis = int64_t{366} * 24 * 3600 * 1000;
constexpr int64_t kMostTokens = limits::kSessionTokens / 2;  // of a prompt, and of an answer
constexpr int64_t kMostBlock = int64_t{1} << 53;
constexpr size_t kLongestLine = 1 << 20;

constexpr const char* kAzureHeader = "TIMESTAMP,ContextTokens,GeneratedTokens";

absl::Status Malformed(const std::string& what) { return absl::InvalidArgumentError(what); }

// With milliseconds since whenever the trace counts from.
struct Line {
  Duration at{0};
  Arrival arrival;
};

absl::StatusOr<int64_t> Number(absl::string_view text, const char* what, int64_t least,
                               int64_t most) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < least || value > most) {
    return Malformed(absl::StrCat(what, " must be a whole number of ", least, " to ", most,
                                  ", not \"", text.substr(0, 40), "\""));
  }
  return value;
}

absl::StatusOr<std::vector<uint64_t>> Blocks(const boost::json::value* value, int64_t prompt) {
  if (value == nullptr || !value->is_array()) return Malformed("hash_ids must be a list");
  std::vector<uint64_t> blocks;
  for (const boost::json::value& item : value->get_array()) {
    if (!item.is_int64() || item.get_int64() < 0 || item.get_int64() > kMostBlock) {
      return Malformed("hash_ids must hold whole numbers from 0 on");
    }
    blocks.push_back(static_cast<uint64_t>(item.get_int64()));
  }
  const int64_t expected = CeilDiv<int64_t>(prompt, kBlockTokens);
  if (static_cast<int64_t>(blocks.size()) != expected) {
    return Malformed(absl::StrCat("a prompt of ", prompt, " tokens has ", expected,
                                  " blocks of 512, but hash_ids has ", blocks.size()));
  }
  return blocks;
}

absl::StatusOr<Line> ParseMooncake(const std::string& text) {
  const absl::StatusOr<boost::json::value> value = ParseJson(text, kLongestLine);
  if (!value.ok()) return value.status();
  absl::StatusOr<JsonObject> object = JsonObject::From(*value, "a request");
  if (!object.ok()) return object.status();
  const auto millis = object->Integer("timestamp", 0, kMostMillis);
  if (!millis.ok()) return millis.status();
  const auto prompt = object->Integer("input_length", 1, kMostTokens);
  if (!prompt.ok()) return prompt.status();
  const auto answer = object->Integer("output_length", 0, kMostTokens);
  if (!answer.ok()) return answer.status();
  auto blocks = Blocks(object->Take("hash_ids"), *prompt);
  if (!blocks.ok()) return blocks.status();
  return Line{.at = std::chrono::milliseconds(*millis),
              .arrival = {.prompt_tokens = static_cast<uint32_t>(*prompt),
                          .answer_tokens = static_cast<uint32_t>(std::max<int64_t>(1, *answer)),
                          .blocks = *std::move(blocks)}};
}

// "2023-11-16 18:17:03.9799600", as the time since 1970.
std::optional<Duration> ParseTime(absl::string_view text) {
  const std::vector<absl::string_view> parts = absl::StrSplit(text, absl::ByAnyChar("-: ."));
  if (parts.size() != 7 || parts[6].empty() || parts[6].size() > 9) return std::nullopt;
  constexpr int kLeast[] = {1970, 1, 1, 0, 0, 0}, kMost[] = {2200, 12, 31, 23, 59, 60};
  int numbers[6];
  for (int i = 0; i < 6; ++i) {
    const auto number = Number(parts[static_cast<size_t>(i)], "", kLeast[i], kMost[i]);
    if (!number.ok()) return std::nullopt;
    numbers[i] = static_cast<int>(*number);
  }
  const auto fraction = Number(parts[6], "", 0, 999'999'999);
  if (!fraction.ok()) return std::nullopt;
  using namespace std::chrono;
  const year_month_day day{year(numbers[0]), month(static_cast<unsigned>(numbers[1])),
                           std::chrono::day(static_cast<unsigned>(numbers[2]))};
  if (!day.ok()) return std::nullopt;
  int64_t nanos = *fraction;
  for (size_t digits = parts[6].size(); digits < 9; ++digits) nanos *= 10;
  return sys_days(day).time_since_epoch() + hours(numbers[3]) + minutes(numbers[4]) +
         seconds(numbers[5]) + nanoseconds(nanos);
}

absl::StatusOr<Line> ParseAzure(const std::string& text) {
  const std::vector<absl::string_view> fields = absl::StrSplit(text, ',');
  if (fields.size() != 3) {
    return Malformed(absl::StrCat("three fields are expected, not ", fields.size()));
  }
  const std::optional<Duration> at = ParseTime(fields[0]);
  if (!at.has_value()) {
    return Malformed(absl::StrCat("TIMESTAMP must look like 2023-11-16 18:17:03.9799600, not \"",
                                  fields[0].substr(0, 40), "\""));
  }
  const auto prompt = Number(fields[1], "ContextTokens", 1, kMostTokens);
  if (!prompt.ok()) return prompt.status();
  const auto answer = Number(fields[2], "GeneratedTokens", 0, kMostTokens);
  if (!answer.ok()) return answer.status();
  return Line{.at = *at,
              .arrival = {.prompt_tokens = static_cast<uint32_t>(*prompt),
                          .answer_tokens = static_cast<uint32_t>(std::max<int64_t>(1, *answer))}};
}

// Reads lines, counts them, and knows how to say where something is wrong.
class LineReader {
 public:
  explicit LineReader(const std::string& path) : path_(path), file_(path) {}

  bool open() const { return file_.is_open(); }
  bool Next(std::string* line) {
    if (!std::getline(file_, *line)) return false;
    if (!line->empty() && line->back() == '\r') line->pop_back();
    ++number_;
    return true;
  }
  absl::Status Error(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat(path_, ":", number_, ": ", what));
  }

 private:
  const std::string path_;
  std::ifstream file_;
  uint64_t number_ = 0;
};

// Fields of a line of CSV; a field in double quotes may hold commas.
std::vector<std::string> CsvFields(const std::string& line) {
  std::vector<std::string> fields(1);
  bool quoted = false;
  for (const char c : line) {
    if (c == '"') {
      quoted = !quoted;
    } else if (c == ',' && !quoted) {
      fields.emplace_back();
    } else {
      fields.back() += c;
    }
  }
  return fields;
}

absl::StatusOr<Geometry> ParseModel(const std::vector<std::string>& columns,
                                    const std::vector<std::string>& fields) {
  const auto field = [&](const char* name) -> absl::string_view {
    const auto column = std::find(columns.begin(), columns.end(), name);
    const auto index = static_cast<size_t>(column - columns.begin());
    return index < fields.size() ? absl::string_view(fields[index]) : absl::string_view();
  };
  const auto layers = Number(field("layers"), "layers", 1, limits::kLayers);
  if (!layers.ok()) return layers.status();
  const auto query_heads = Number(field("q_heads"), "q_heads", 1, limits::kHeads);
  if (!query_heads.ok()) return query_heads.status();
  const auto kv_heads = Number(field("kv_heads"), "kv_heads", 1, limits::kHeads);
  if (!kv_heads.ok()) return kv_heads.status();
  const auto dim = Number(field("head_dim"), "head_dim", 1, limits::kHeadDim);
  if (!dim.ok()) return dim.status();
  const auto local = Number(field("local_layers"), "local_layers", 0, limits::kLayers);
  if (!local.ok()) return local.status();
  if (*local > 0) {
    return absl::FailedPreconditionError(
        "it has layers with a sliding window, which one layer group cannot say; take a model "
        "whose local_layers is 0");
  }
  const auto dtype = field("kv_dtype");
  if (dtype != "bf16" && dtype != "fp16") return Malformed("kv_dtype must be bf16 or fp16");
  Geometry geometry{.layers = static_cast<uint32_t>(*layers),
                    .query_heads = static_cast<uint32_t>(*query_heads),
                    .kv_heads = static_cast<uint32_t>(*kv_heads),
                    .key_dim = static_cast<uint32_t>(*dim),
                    .value_dim = field("attention") == "MLA" ? 0u : static_cast<uint32_t>(*dim),
                    .dtype = dtype == "bf16" ? Dtype::kBf16 : Dtype::kF16,
                    .kv_of_layer = std::vector<uint16_t>(static_cast<size_t>(*layers))};
  std::iota(geometry.kv_of_layer.begin(), geometry.kv_of_layer.end(), uint16_t{0});
  if (absl::Status status = CheckGeometry(geometry); !status.ok()) return status;
  return geometry;
}

}  // namespace

absl::StatusOr<Arrivals> ReadArrivals(const std::string& path, size_t most, Duration longest) {
  LineReader reader(path);
  if (!reader.open()) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  Arrivals arrivals;
  Duration first{0}, last{0};
  std::string text;
  while (arrivals.requests.size() < most && reader.Next(&text)) {
    if (text.size() > kLongestLine) return reader.Error("the line is longer than 1 MiB");
    if (arrivals.format.empty()) {
      arrivals.format = text == kAzureHeader ? "Azure" : "Mooncake";
      if (text == kAzureHeader) continue;
      if (text.empty() || text.front() != '{') {
        return reader.Error(absl::StrCat(
            "neither a Mooncake request (an object with timestamp, input_length, output_length "
            "and hash_ids) nor Azure's header ",
            kAzureHeader));
      }
    }
    absl::StatusOr<Line> line = arrivals.format == "Azure" ? ParseAzure(text) : ParseMooncake(text);
    if (!line.ok()) return reader.Error(line.status().message());
    if (arrivals.requests.empty()) first = last = line->at;
    if (line->at < last) return reader.Error("this request comes before the one above it");
    last = line->at;
    if (last - first >= longest) break;
    line->arrival.at = last - first;
    arrivals.requests.push_back(std::move(line->arrival));
  }
  if (arrivals.requests.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, " has no request"));
  }
  return arrivals;
}

absl::StatusOr<Geometry> ReadGeometry(const std::string& path, const std::string& model) {
  LineReader reader(path);
  if (!reader.open()) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  std::string text;
  if (!reader.Next(&text)) return reader.Error("the table is empty");
  const std::vector<std::string> columns = CsvFields(text);
  if (columns.front() != "model") return reader.Error("the first column must be `model`");
  std::vector<std::string> names;
  while (reader.Next(&text)) {
    const std::vector<std::string> fields = CsvFields(text);
    if (fields.front() != model) {
      names.push_back(fields.front());
      continue;
    }
    absl::StatusOr<Geometry> geometry = ParseModel(columns, fields);
    if (geometry.status().code() == absl::StatusCode::kFailedPrecondition) {
      return absl::FailedPreconditionError(absl::StrCat(model, ": ", geometry.status().message()));
    }
    if (!geometry.ok()) return reader.Error(geometry.status().message());
    return geometry;
  }
  return absl::NotFoundError(
      absl::StrCat(path, " has no model \"", model, "\"; it has ", absl::StrJoin(names, ", ")));
}

}  // namespace kvpool::sim

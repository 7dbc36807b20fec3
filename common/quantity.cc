// A number, then a unit from a table.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/quantity.h"

#include <array>
#include <charconv>
#include <limits>
#include <string_view>

#include "absl/strings/str_cat.h"

namespace kvpool {
namespace {

struct Unit {
  std::string_view name;
  int64_t factor;
};

constexpr std::array<Unit, 5> kByteUnits = {{{"B", 1},
                                             {"KiB", int64_t{1} << 10},
                                             {"MiB", int64_t{1} << 20},
                                             {"GiB", int64_t{1} << 30},
                                             {"TiB", int64_t{1} << 40}}};
// Of one microsecond.
constexpr std::array<Unit, 5> kTimeUnits = {
    {{"us", 1}, {"ms", 1000}, {"s", 1000000}, {"min", 60000000}, {"h", 3600000000}}};

template <size_t N>
absl::StatusOr<int64_t> Parse(const std::string& text, const std::array<Unit, N>& units,
                              const char* allowed) {
  const auto error = [&](const char* what) {
    return absl::InvalidArgumentError(absl::StrCat("\"", text, "\" ", what, "; ", allowed));
  };
  const char* const end = text.data() + text.size();
  int64_t number = 0;
  const auto [rest, code] = std::from_chars(text.data(), end, number);
  if (code == std::errc::result_out_of_range) return error("is too large");
  if (code != std::errc() || number < 0) return error("is not a whole number with a unit");
  std::string_view unit(rest, static_cast<size_t>(end - rest));
  unit.remove_prefix(std::min(unit.find_first_not_of(' '), unit.size()));
  if (unit.empty() && number == 0) return 0;  // zero of anything
  for (const Unit& known : units) {
    if (known.name != unit) continue;
    if (number > std::numeric_limits<int64_t>::max() / known.factor) return error("is too large");
    return number * known.factor;
  }
  if (unit.starts_with('.')) return error("is not a whole number with a unit");
  return error(unit.empty() ? "has no unit" : "has an unknown unit");
}

template <size_t N>
std::string Format(int64_t value, const std::array<Unit, N>& units) {
  size_t best = 0;
  for (size_t i = 1; i < N; ++i) {
    if (value != 0 && value % units[i].factor == 0) best = i;
  }
  const std::string_view unit = units[best].name;
  return std::to_string(value / units[best].factor).append(" ").append(unit);
}

}  // namespace

absl::StatusOr<Bytes> ParseBytes(const std::string& text) {
  const auto value =
      Parse(text, kByteUnits, "write a whole number of B, KiB, MiB, GiB or TiB, such as 12 GiB");
  if (!value.ok()) return value.status();
  return Bytes(*value);
}

absl::StatusOr<Duration> ParseDuration(const std::string& text) {
  const auto micros =
      Parse(text, kTimeUnits, "write a whole number of us, ms, s, min or h, such as 250 ms");
  if (!micros.ok()) return micros.status();
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max() / 1000;
  if (*micros > kMost)
    return absl::InvalidArgumentError(absl::StrCat("\"", text, "\" is too long"));
  return std::chrono::microseconds(*micros);
}

absl::StatusOr<int64_t> ParseInteger(const std::string& text) {
  const char* const end = text.data() + text.size();
  int64_t number = 0;
  const auto [rest, code] = std::from_chars(text.data(), end, number);
  if (code != std::errc() || rest != end) {
    return absl::InvalidArgumentError(absl::StrCat("\"", text, "\" is not a whole number"));
  }
  return number;
}

std::string FormatBytes(Bytes bytes) { return Format(bytes.value(), kByteUnits); }

std::string FormatDuration(Duration duration) {
  return Format(std::chrono::duration_cast<std::chrono::microseconds>(duration).count(),
                kTimeUnits);
}

}  // namespace kvpool

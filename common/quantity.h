// Text for quantities, as operators write them in files, flags and requests: "12 GiB", "250 ms".
// Only whole numbers and binary units, so that a value means one thing. Values, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/units.h"

namespace kvpool {

// "12 GiB", "512MiB", "0". Units: B, KiB, MiB, GiB, TiB. Never negative.
absl::StatusOr<Bytes> ParseBytes(const std::string& text);

// "250 ms", "2s". Units: us, ms, s, min, h; the unit is required. Never negative.
absl::StatusOr<Duration> ParseDuration(const std::string& text);

// A whole decimal number, possibly negative.
absl::StatusOr<int64_t> ParseInteger(const std::string& text);

// The largest unit that divides it: "12 GiB", "1536 MiB", "7 B". ParseBytes reads it back.
std::string FormatBytes(Bytes bytes);

// The largest unit that divides it, rounded down to 1 us. ParseDuration reads it back.
std::string FormatDuration(Duration duration);

}  // namespace kvpool

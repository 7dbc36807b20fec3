// See rung_choice.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/rung_choice.h"

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "common/quantity.h"

namespace kvpool {
namespace {

std::string Share(double value) {
  char text[16];
  (void)std::snprintf(text, sizeof(text), "%.3f", value);
  return text;
}

}  // namespace

RungUse& RungUse::operator+=(const RungUse& other) {
  sessions += other.sessions;
  compactions += other.compactions;
  floor_stops += other.floor_stops;
  cumulative_sum += other.cumulative_sum;
  cumulative_count += other.cumulative_count;
  return *this;
}

RungUse RungUse::Since(const RungUse& before) const {
  const bool anew = compactions < before.compactions || floor_stops < before.floor_stops ||
                    cumulative_count < before.cumulative_count ||
                    cumulative_sum < before.cumulative_sum;
  if (anew) return *this;
  return {.sessions = sessions,
          .compactions = compactions - before.compactions,
          .floor_stops = floor_stops - before.floor_stops,
          .cumulative_sum = cumulative_sum - before.cumulative_sum,
          .cumulative_count = cumulative_count - before.cumulative_count};
}

RungChoice::RungChoice(uint32_t rungs, uint32_t rung, TimePoint now)
    : rung_(rung), since_(now), barred_until_(rungs) {}

void RungChoice::Enter(uint32_t rung, TimePoint now) {
  if (rung < rung_) {
    came_down_ = now;
  } else if (came_down_.has_value()) {
    const bool soon = now - *came_down_ < patience_;
    patience_ = soon ? std::min(2 * patience_, kLongestPatience) : kPatience;
    came_down_.reset();
  }
  rung_ = rung;
  since_ = now;
  done_ = {};
}

void RungChoice::See(const RungInput& input, TimePoint now) {
  if (input.pressure == RungInput::Pressure::kUnknown) {
    pressed_since_.reset();
    calm_since_.reset();
    return;
  }
  if (input.pressure == RungInput::Pressure::kPressed) {
    if (!pressed_since_.has_value()) pressed_since_ = now;
    pressed_last_ = now;
    calm_since_.reset();
    return;
  }
  if (pressed_since_.has_value() && now - *pressed_last_ <= kGap) return;
  pressed_since_.reset();
  if (!calm_since_.has_value()) calm_since_ = now;
}

// The mildest rung has nothing below it: what it loses, the operator has allowed.
std::optional<RungStep> RungChoice::BelowFloor(double min_recovery, TimePoint now) {
  if (rung_ == 0) return std::nullopt;
  const double mean = done_.cumulative_count == 0
                          ? 1
                          : done_.cumulative_sum / static_cast<double>(done_.cumulative_count);
  std::string reason;
  if (mean < min_recovery) {
    reason = absl::StrCat("the cumulative recovery of its sessions on this rung is ", Share(mean),
                          ", below min_recovery ", Share(min_recovery));
  } else if (done_.floor_stops >= kFloorStops && done_.floor_stops >= done_.compactions) {
    reason = absl::StrCat(done_.floor_stops, " of ", done_.floor_stops + done_.compactions,
                          " compactions on this rung would have lost more than min_recovery ",
                          Share(min_recovery), " allows");
  } else {
    return std::nullopt;
  }
  barred_until_[rung_] = now + kBarred;
  return RungStep{.to = rung_ - 1, .reason = std::move(reason)};
}

std::optional<RungStep> RungChoice::Step(const RungInput& input, TimePoint now) {
  if (input.rung != rung_) Enter(input.rung, now);
  done_ += input.done;
  See(input, now);
  if (auto step = BelowFloor(input.min_recovery, now)) return step;
  const bool may_climb =
      rung_ + 1 < rungs() && barred_until_[rung_ + 1] <= now && now - since_ >= kDwell;
  if (pressed_since_.has_value() && pressed_last_ == now && now - *pressed_since_ >= kClimbAfter &&
      may_climb) {
    return RungStep{.to = rung_ + 1, .reason = input.why};
  }
  if (rung_ > 0 && calm_since_.has_value() && now - std::max(*calm_since_, since_) >= patience_) {
    return RungStep{
        .to = rung_ - 1,
        .reason = absl::StrCat("there was no pressure for ", FormatDuration(patience_))};
  }
  return std::nullopt;
}

}  // namespace kvpool

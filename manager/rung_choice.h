// When a tenant with the policy `auto` changes its rung: climbs under pressure that lasts, comes
// down when there was none for longer, and leaves a rung on which its floor of recovery does not
// hold. Pure: takes what agents have reported and a time, and says what should be; that it becomes
// so is recorded by someone else. One thread at a time.
//
// One rung at a time, and none before kDwell on the one before. A rung that was left for the floor
// is barred for kBarred, and with it the way to those above. Each time that a tenant has to climb
// soon after it came down, it waits twice as long before it comes down again: load that fits one
// rung and not the one below does not go to and fro.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/clock.h"

namespace kvpool {

// What one rung has done at an agent, since its ladder was applied there; or in a while.
struct RungUse {
  uint32_t sessions = 0;
  uint64_t compactions = 0;
  uint64_t floor_stops = 0;
  double cumulative_sum = 0;  // of sessions' cumulative recovery, the mean over heads
  uint64_t cumulative_count = 0;

  RungUse& operator+=(const RungUse& other);
  // What came since `before`; all of it, when it counts anew.
  RungUse Since(const RungUse& before) const;
};

struct RungInput {
  uint32_t rung = 0;  // as it is recorded
  // kUnknown: no agent says anything, which is no reason to do anything.
  enum class Pressure : uint8_t { kUnknown, kNone, kPressed } pressure = Pressure::kUnknown;
  std::string why;  // of kPressed: "it wants 12 MiB and is given 8 MiB"
  RungUse done;     // by this rung since the last step
  double min_recovery = 0;
};

struct RungStep {
  uint32_t to = 0;
  std::string reason;  // one sentence without a full stop
};

class RungChoice {
 public:
  static constexpr Duration kClimbAfter = std::chrono::seconds(2);
  static constexpr Duration kDwell = std::chrono::seconds(2);
  // Pressure that is seen again within this time was there all along.
  static constexpr Duration kGap = std::chrono::seconds(1);
  static constexpr Duration kPatience = std::chrono::seconds(30);
  static constexpr Duration kLongestPatience = std::chrono::minutes(16);
  static constexpr Duration kBarred = std::chrono::minutes(5);
  // A rung is left when so many compactions were held by the floor, and no fewer than were not.
  static constexpr uint64_t kFloorStops = 3;

  // A ladder of `rungs`, on `rung` since now at the latest.
  RungChoice(uint32_t rungs, uint32_t rung, TimePoint now);

  // The rung that the tenant should be on, where that is another one. To be called again, with that
  // as `input.rung` once it is recorded; until then it says the same again.
  std::optional<RungStep> Step(const RungInput& input, TimePoint now);

  uint32_t rungs() const { return static_cast<uint32_t>(barred_until_.size()); }
  // How long it waits without pressure before it comes down.
  Duration patience() const { return patience_; }

 private:
  void Enter(uint32_t rung, TimePoint now);
  void See(const RungInput& input, TimePoint now);
  std::optional<RungStep> BelowFloor(double min_recovery, TimePoint now);

  uint32_t rung_;
  TimePoint since_;  // on this rung
  RungUse done_;     // on it
  std::optional<TimePoint> pressed_since_, pressed_last_, calm_since_, came_down_;
  std::vector<TimePoint> barred_until_;  // [rungs]
  Duration patience_ = kPatience;
};

}  // namespace kvpool

// When a tenant changes its rung: single cases, then random histories of which nothing is known but
// the rules.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/rung_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace kvpool {
namespace {

using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;
using ::testing::HasSubstr;
using Pressure = RungInput::Pressure;

constexpr Duration kTick = milliseconds(250);
constexpr uint32_t kRungs = 5;

// A choice whose steps take effect at once.
struct Tenant {
  explicit Tenant(uint32_t rung = 0) : rung(rung), choice(kRungs, rung, now) {}

  std::optional<RungStep> Tick(Pressure pressure, const RungUse& done = {}) {
    now += kTick;
    const auto step = choice.Step({.rung = rung,
                                   .pressure = pressure,
                                   .why = "it is pressed",
                                   .done = done,
                                   .min_recovery = 0.9},
                                  now);
    if (step.has_value()) rung = step->to;
    return step;
  }
  // Until it moves, or the time has passed.
  std::optional<RungStep> Wait(Pressure pressure, Duration longest) {
    for (const TimePoint end = now + longest; now < end;) {
      if (auto step = Tick(pressure)) return step;
    }
    return std::nullopt;
  }

  TimePoint now{seconds(1000)};
  uint32_t rung;
  RungChoice choice;
};

TEST(RungChoiceTest, ClimbsWhenPressureLastsAndSaysWhy) {
  Tenant tenant;
  EXPECT_FALSE(tenant.Wait(Pressure::kNone, minutes(1)).has_value());
  const TimePoint begin = tenant.now;
  const auto step = tenant.Wait(Pressure::kPressed, seconds(10));
  ASSERT_TRUE(step.has_value());
  EXPECT_EQ(step->to, 1u);
  EXPECT_EQ(step->reason, "it is pressed");
  EXPECT_GE(tenant.now - begin, RungChoice::kClimbAfter);
  EXPECT_LE(tenant.now - begin, RungChoice::kClimbAfter + 2 * kTick);
}

TEST(RungChoiceTest, AMomentOfPressureIsNoReasonAndAGapInItNoEnd) {
  Tenant tenant;
  for (int i = 0; i < 40; ++i) {  // half a second of ten
    EXPECT_FALSE(tenant.Wait(Pressure::kPressed, milliseconds(500)).has_value());
    EXPECT_FALSE(tenant.Wait(Pressure::kNone, milliseconds(9500)).has_value());
  }
  for (int i = 0; i < 3; ++i) {
    (void)tenant.Wait(Pressure::kPressed, milliseconds(500));
    (void)tenant.Wait(Pressure::kNone, milliseconds(500));
  }
  EXPECT_EQ(tenant.rung, 1u);
}

TEST(RungChoiceTest, ComesDownLaterThanItClimbs) {
  Tenant tenant;
  ASSERT_TRUE(tenant.Wait(Pressure::kPressed, seconds(10)).has_value());
  const TimePoint begin = tenant.now;
  const auto step = tenant.Wait(Pressure::kNone, minutes(2));
  ASSERT_TRUE(step.has_value());
  EXPECT_EQ(step->to, 0u);
  EXPECT_THAT(step->reason, HasSubstr("no pressure for 30 s"));
  EXPECT_GE(tenant.now - begin, RungChoice::kPatience);
}

TEST(RungChoiceTest, WhoKnowsNothingDoesNothing) {
  Tenant tenant(2);
  EXPECT_FALSE(tenant.Wait(Pressure::kUnknown, minutes(30)).has_value());
  // And what was before counts no more.
  EXPECT_FALSE(tenant.Wait(Pressure::kNone, RungChoice::kPatience - seconds(1)).has_value());
  EXPECT_TRUE(tenant.Wait(Pressure::kNone, seconds(3)).has_value());
}

TEST(RungChoiceTest, ARungBelowTheFloorIsLeftAtOnceAndBarred) {
  for (const RungUse& bad :
       {RungUse{.compactions = 10, .cumulative_sum = 8.9, .cumulative_count = 10},
        RungUse{.compactions = 3, .floor_stops = 3}}) {
    Tenant tenant;
    (void)tenant.Wait(Pressure::kPressed, seconds(10));
    ASSERT_TRUE(tenant.Wait(Pressure::kPressed, seconds(10)).has_value());
    ASSERT_EQ(tenant.rung, 2u);
    const auto step = tenant.Tick(Pressure::kPressed, bad);
    ASSERT_TRUE(step.has_value());
    EXPECT_EQ(step->to, 1u);
    EXPECT_THAT(step->reason, HasSubstr("min_recovery 0.900"));
    const TimePoint barred = tenant.now;
    EXPECT_FALSE(tenant.Wait(Pressure::kPressed, RungChoice::kBarred - seconds(1)).has_value());
    ASSERT_TRUE(tenant.Wait(Pressure::kPressed, seconds(3)).has_value()) << "tried again";
    EXPECT_GE(tenant.now - barred, RungChoice::kBarred);
  }
}

TEST(RungChoiceTest, AFewStopsAmongManyCompactionsAreTheAgentsBusiness) {
  Tenant tenant(3);
  for (int i = 0; i < 50; ++i) {
    EXPECT_FALSE(
        tenant
            .Tick(
                Pressure::kPressed,
                {.compactions = 3, .floor_stops = 2, .cumulative_sum = 2.8, .cumulative_count = 3})
            .has_value() &&
        tenant.rung < 3);
  }
}

TEST(RungChoiceTest, TheMildestRungIsNeverLeftForTheFloor) {
  Tenant tenant;
  EXPECT_FALSE(tenant.Tick(Pressure::kNone, {.floor_stops = 100}).has_value());
}

// Load that fits rung 1 and not rung 0: the tenant comes down ever more seldom.
TEST(RungChoiceTest, WhoMustClimbAgainSoonWaitsLonger) {
  Tenant tenant(1);
  uint32_t early = 0, late = 0;
  const TimePoint begin = tenant.now;
  while (tenant.now - begin < minutes(240)) {
    const bool moved =
        tenant.Tick(tenant.rung == 0 ? Pressure::kPressed : Pressure::kNone).has_value();
    if (tenant.now - begin < minutes(10)) early += moved;
    if (tenant.now - begin >= minutes(180)) late += moved;
  }
  EXPECT_GE(early, 4u);
  EXPECT_LE(late, 2 * 60 / 16 + 2) << "in an hour";
  EXPECT_EQ(tenant.choice.patience(), RungChoice::kLongestPatience);
}

TEST(RungChoiceTest, CountersThatBeginAnewAreTakenWhole) {
  const RungUse before{
      .compactions = 10, .floor_stops = 1, .cumulative_sum = 9, .cumulative_count = 10};
  const RungUse more{
      .compactions = 12, .floor_stops = 1, .cumulative_sum = 10.5, .cumulative_count = 12};
  EXPECT_EQ(more.Since(before).compactions, 2u);
  EXPECT_DOUBLE_EQ(more.Since(before).cumulative_sum, 1.5);
  const RungUse anew{.compactions = 3, .cumulative_sum = 2, .cumulative_count = 3};
  EXPECT_EQ(anew.Since(before).compactions, 3u);
  EXPECT_EQ(anew.Since(before).cumulative_count, 3u);
}

class RandomHistories : public testing::TestWithParam<uint32_t> {};

TEST_P(RandomHistories, KeepTheRules) {
  std::mt19937 random(GetParam());
  const auto draw = [&](uint32_t n) { return random() % n; };
  Tenant tenant(draw(kRungs)), twin(tenant.rung);
  Pressure pressure = Pressure::kNone;
  uint32_t stay = 0;
  TimePoint last_move = tenant.now, calm_since = tenant.now;
  std::optional<TimePoint> last_pressed;
  std::vector<TimePoint> barred(kRungs);
  for (int i = 0; i < 4000; ++i) {
    if (stay-- == 0) {
      pressure = static_cast<Pressure>(draw(3));
      stay = draw(200);
    }
    RungUse done;
    if (draw(20) == 0) {
      done.compactions = draw(4);
      done.floor_stops = draw(3);
      done.cumulative_count = done.compactions;
      done.cumulative_sum = static_cast<double>(done.compactions) * (0.8 + 0.05 * draw(5));
    }
    const uint32_t before = tenant.rung;
    const auto step = tenant.Tick(pressure, done);
    const auto same = twin.Tick(pressure, done);
    ASSERT_EQ(step.has_value(), same.has_value()) << "not deterministic";
    if (pressure == Pressure::kPressed) last_pressed = tenant.now;
    if (pressure != Pressure::kNone) calm_since = tenant.now;
    if (!step.has_value()) continue;
    ASSERT_EQ(step->to, same->to);
    ASSERT_LT(step->to, kRungs);
    ASSERT_EQ(before < step->to ? step->to - before : before - step->to, 1u);
    ASSERT_FALSE(step->reason.empty());
    if (step->to > before) {
      ASSERT_EQ(pressure, Pressure::kPressed) << "climbed without pressure";
      ASSERT_TRUE(last_pressed.has_value());
      ASSERT_GE(tenant.now - last_move, RungChoice::kDwell);
      ASSERT_GE(tenant.now, barred[step->to]) << "climbed to a barred rung";
    } else if (step->reason.find("min_recovery") != std::string::npos) {
      barred[before] = tenant.now + RungChoice::kBarred;
    } else {
      ASSERT_EQ(pressure, Pressure::kNone);
      ASSERT_GE(tenant.now - last_move, RungChoice::kPatience);
      ASSERT_GE(tenant.now - calm_since, RungChoice::kPatience);
    }
    last_move = tenant.now;
  }
}

TEST_P(RandomHistories, ConstantInputEndsOnOneRung) {
  std::mt19937 random(GetParam() + 1000);
  Tenant tenant(random() % kRungs);
  const auto pressure = static_cast<Pressure>(random() % 3);
  (void)tenant.Wait(pressure, seconds(0));
  for (int i = 0; i < 4 * 60 * 30; ++i) (void)tenant.Tick(pressure);
  const uint32_t rung = tenant.rung;
  if (pressure == Pressure::kPressed) {
    EXPECT_EQ(rung, kRungs - 1);
  } else if (pressure == Pressure::kNone) {
    EXPECT_EQ(rung, 0u);
  }
  for (int i = 0; i < 4 * 60 * 30; ++i) ASSERT_FALSE(tenant.Tick(pressure).has_value());
}

INSTANTIATE_TEST_SUITE_P(Seeds, RandomHistories, testing::Range(0u, 40u));

}  // namespace
}  // namespace kvpool

// Small floats: every number there is comes back, and every other one goes to its nearest.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/numbers.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace kvpool {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// What bits mean, from the definition of a format with `mantissa` bits and `bias`.
double Meaning(uint32_t magnitude, int mantissa, int bias) {
  const int exponent = static_cast<int>(magnitude >> mantissa);
  const double fraction = static_cast<double>(magnitude & ((1u << mantissa) - 1)) / (1 << mantissa);
  return exponent == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1 + fraction, exponent - bias);
}

// `all[i]` ascending: x must become all[to] such that no other is nearer, ties to an even index.
void ExpectNearest(const std::vector<double>& all, double x, uint32_t to) {
  ASSERT_LT(to, all.size()) << x;
  const double error = std::abs(x - all[to]);
  for (int step : {-1, 1}) {
    const auto other = static_cast<size_t>(static_cast<int>(to) + step);
    if (other >= all.size()) continue;
    const double there = std::abs(x - all[other]);
    ASSERT_LE(error, there) << x;
    if (error == there) {
      ASSERT_EQ(to % 2, 0u) << x << " is a tie";
    }
  }
}

std::vector<float> Samples(float limit, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> exponent(-32, std::log2(limit)), sign(-1, 1);
  std::vector<float> samples;
  for (int i = 0; i < 20000; ++i) {
    samples.push_back(std::copysign(std::exp2(exponent(random)), sign(random)));
  }
  return samples;
}

TEST(Numbers, EveryF16ComesBack) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float x = FromF16(static_cast<uint16_t>(bits));
    const uint32_t magnitude = bits & 0x7fff;
    if (magnitude > 0x7c00) {
      EXPECT_TRUE(std::isnan(x));
      EXPECT_TRUE(std::isnan(FromF16(ToF16(x))));
      continue;
    }
    const double expected = magnitude == 0x7c00 ? kInfinity : Meaning(magnitude, 10, 15);
    EXPECT_EQ(x, bits & 0x8000 ? -expected : expected);
    EXPECT_EQ(ToF16(x), bits);
  }
}

TEST(Numbers, F16IsTheNearest) {
  std::vector<double> all;
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) all.push_back(Meaning(bits, 10, 15));
  std::vector<float> samples = Samples(kF16Max, 1);
  for (size_t i = 0; i + 1 < all.size(); i += 7) {  // ties
    samples.push_back(static_cast<float>((all[i] + all[i + 1]) / 2));
  }
  for (float x : samples) {
    ExpectNearest(all, std::abs(x), ToF16(x) & 0x7fffu);
    EXPECT_EQ(ToF16(x) >> 15, std::signbit(x));
  }
  EXPECT_EQ(ToF16(65519.0f), 0x7bff);
  EXPECT_EQ(ToF16(65520.0f), 0x7c00);
  EXPECT_EQ(ToF16(-kInfinity), 0xfc00);
  EXPECT_TRUE(std::isnan(FromF16(ToF16(std::bit_cast<float>(0x7f800001u)))));
}

TEST(Numbers, F16DirectedRoundingBrackets) {
  std::vector<float> samples = Samples(kF16Max, 2);
  samples.insert(samples.end(), {0.0f, 1e-30f, -1e-30f, kF16Max, -kF16Max, 1.0f, 65503.0f});
  for (float x : samples) {
    const float down = FromF16(ToF16Down(x)), up = FromF16(ToF16Up(x));
    ASSERT_LE(down, x);
    ASSERT_GE(up, x);
    const float nearest = FromF16(ToF16(x));
    ASSERT_TRUE(nearest == down || nearest == up) << x;
    // Neighbours: nothing lies between them.
    if (down != up) {
      ASSERT_EQ(FromF16(ToF16(down + (up - down) / 4)), down) << x;
      ASSERT_EQ(FromF16(ToF16(down + (up - down) * 3 / 4)), up) << x;
    } else {
      ASSERT_EQ(down, x);
    }
  }
}

TEST(Numbers, EveryE4m3ComesBack) {
  for (uint32_t bits = 0; bits < 0x100; ++bits) {
    const float x = FromE4m3(static_cast<uint8_t>(bits));
    const uint32_t magnitude = bits & 0x7f;
    if (magnitude == 0x7f) {
      EXPECT_TRUE(std::isnan(x));
    } else {
      const double expected = Meaning(magnitude, 3, 7);
      EXPECT_EQ(x, bits & 0x80 ? -expected : expected);
      EXPECT_EQ(ToE4m3(x), bits);
    }
  }
  EXPECT_EQ(FromE4m3(0x7e), kE4m3Max);
}

TEST(Numbers, E4m3IsTheNearestAndSaturates) {
  std::vector<double> all;
  for (uint32_t bits = 0; bits < 0x7f; ++bits) all.push_back(Meaning(bits, 3, 7));
  std::vector<float> samples = Samples(kE4m3Max, 3);
  for (size_t i = 0; i + 1 < all.size(); ++i) {
    samples.push_back(static_cast<float>((all[i] + all[i + 1]) / 2));
  }
  for (float x : samples) {
    ExpectNearest(all, std::abs(x), ToE4m3(x) & 0x7fu);
    EXPECT_EQ(ToE4m3(x) >> 7, std::signbit(x));
  }
  for (float x : {449.0f, 465.0f, 1e30f, kInfinity}) {
    EXPECT_EQ(ToE4m3(x), 0x7e);
    EXPECT_EQ(ToE4m3(-x), 0xfe);
  }
  EXPECT_TRUE(std::isnan(FromE4m3(ToE4m3(std::nanf("")))));
}

TEST(Numbers, Bf16KeepsTheHighHalf) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float x = FromBf16(static_cast<uint16_t>(bits));
    EXPECT_EQ(std::bit_cast<uint32_t>(x), bits << 16);
    if (x == x) {
      EXPECT_EQ(ToBf16(x), bits);
    }
  }
}

}  // namespace
}  // namespace kvpool

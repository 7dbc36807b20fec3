// Strong integers: bytes, tokens and ids that cannot be mixed up or passed in the wrong order.
//
// A StrongInt adds, subtracts and compares with its own kind only. It does no saturation: overflow
// of the 64-bit representations used here is a bug, not an input. Values, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <string>

namespace kvpool {

template <typename Tag, typename Rep>
class StrongInt {
 public:
  using rep = Rep;
  constexpr StrongInt() = default;
  constexpr explicit StrongInt(Rep value) : value_(value) {}

  constexpr Rep value() const { return value_; }
  constexpr auto operator<=>(const StrongInt&) const = default;

  constexpr StrongInt& operator+=(StrongInt other) { return value_ += other.value_, *this; }
  constexpr StrongInt& operator-=(StrongInt other) { return value_ -= other.value_, *this; }
  friend constexpr StrongInt operator+(StrongInt a, StrongInt b) { return a += b; }
  friend constexpr StrongInt operator-(StrongInt a, StrongInt b) { return a -= b; }
  friend constexpr StrongInt operator*(StrongInt a, Rep n) { return StrongInt(a.value_ * n); }
  friend constexpr Rep operator/(StrongInt a, StrongInt b) { return a.value_ / b.value_; }

  template <typename H>
  friend H AbslHashValue(H h, StrongInt v) {
    return H::combine(std::move(h), v.value_);
  }

 private:
  Rep value_ = 0;
};

// A number of bytes. Signed, so that a difference is representable.
using Bytes = StrongInt<struct BytesTag, int64_t>;

inline namespace literals {
constexpr Bytes operator""_B(unsigned long long n) { return Bytes(static_cast<int64_t>(n)); }
constexpr Bytes operator""_KiB(unsigned long long n) {
  return Bytes(static_cast<int64_t>(n) << 10);
}
constexpr Bytes operator""_MiB(unsigned long long n) {
  return Bytes(static_cast<int64_t>(n) << 20);
}
constexpr Bytes operator""_GiB(unsigned long long n) {
  return Bytes(static_cast<int64_t>(n) << 30);
}
}  // namespace literals

// ceil(a / b) for b > 0 and a >= 0.
template <typename T>
constexpr T CeilDiv(T a, T b) {
  return (a + b - 1) / b;
}

// a rounded up to a multiple of b.
template <typename T>
constexpr T RoundUp(T a, T b) {
  return CeilDiv(a, b) * b;
}

}  // namespace kvpool

template <typename Tag, typename Rep>
struct std::hash<kvpool::StrongInt<Tag, Rep>> {
  size_t operator()(kvpool::StrongInt<Tag, Rep> v) const { return std::hash<Rep>()(v.value()); }
};

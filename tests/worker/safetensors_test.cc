// The safetensors reader on good files, on every way a file can be bad, and on random damage.
//
// SPDX-License-Identifier: Apache-2.0
#include "worker/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "tests/worker/files.h"

namespace kvpool {
namespace {

using testing::HasSubstr;

// A file with the given header and data bytes.
std::string File(const std::string& header, const std::string& data) {
  const uint64_t size = header.size();
  return std::string(reinterpret_cast<const char*>(&size), 8) + header + data;
}

class SafetensorsTest : public testing::Test {
 protected:
  absl::StatusOr<SafetensorsFile> Open(const std::string& bytes) {
    return SafetensorsFile::Open(folder_.Write("x.safetensors", bytes));
  }

  void ExpectError(const std::string& bytes, const std::string& part) {
    const auto file = Open(bytes);
    ASSERT_FALSE(file.ok()) << part;
    EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(file.status().message()), HasSubstr(part));
    EXPECT_THAT(std::string(file.status().message()), HasSubstr("x.safetensors"));
  }

  TemporaryFolder folder_;
};

constexpr char kTwo[] =
    R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
    R"("b":{"dtype":"BF16","shape":[1,3],"data_offsets":[8,14]}})";

TEST_F(SafetensorsTest, ReadsShapesAndConverts) {
  const float floats[2] = {1.5f, -3.25f};
  const uint16_t bf16[3] = {0x3f80, 0xc040, 0x7f80};  // 1, -3, infinity
  std::string data(reinterpret_cast<const char*>(floats), 8);
  data.append(reinterpret_cast<const char*>(bf16), 6);
  const auto file = Open(File(kTwo, data));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->tensors().size(), 2u);
  EXPECT_EQ(file->Find("c"), nullptr);
  const TensorView* a = file->Find("a");
  const TensorView* b = file->Find("b");
  ASSERT_NE(a, nullptr);
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->shape, (std::vector<uint64_t>{1, 3}));
  std::vector<float> out(2);
  ConvertToF32(*a, out);
  EXPECT_EQ(out, (std::vector<float>{1.5f, -3.25f}));
  out.resize(3);
  ConvertToF32(*b, out);
  EXPECT_EQ(out, (std::vector<float>{1, -3, std::numeric_limits<float>::infinity()}));
}

TEST_F(SafetensorsTest, ConvertsEveryHalf) {
  std::string data(2 << 16, '\0');
  for (uint32_t bits = 0; bits < 1 << 16; ++bits) std::memcpy(&data[2 * bits], &bits, 2);
  const auto file =
      Open(File(R"({"h":{"dtype":"F16","shape":[65536],"data_offsets":[0,131072]}})", data));
  ASSERT_TRUE(file.ok()) << file.status();
  std::vector<float> out(1 << 16);
  ConvertToF32(*file->Find("h"), out);
  for (uint32_t bits = 0; bits < 1 << 16; ++bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const double sign = bits >> 15 ? -1 : 1;
    if (exponent == 31 && mantissa != 0) {
      ASSERT_TRUE(std::isnan(out[bits])) << bits;
    } else if (exponent == 31) {
      ASSERT_EQ(out[bits], sign * INFINITY) << bits;
    } else if (exponent == 0) {
      ASSERT_EQ(out[bits], sign * std::ldexp(mantissa, -24)) << bits;
    } else {
      ASSERT_EQ(out[bits], sign * std::ldexp(1024 + mantissa, exponent - 25)) << bits;
    }
  }
}

TEST_F(SafetensorsTest, EveryKindOfBadFileIsNamed) {
  const std::string data(14, 'x'), good = kTwo;
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string header = good;
    header.replace(header.find(from), from.size(), to);
    return File(header, data);
  };
  ASSERT_TRUE(Open(File(good, data)).ok());
  ExpectError("", "empty");
  ExpectError("1234567", "truncated");
  ExpectError(File(good, data).substr(0, 40), "does not fit");
  ExpectError(std::string(8, '\xff'), "does not fit");
  ExpectError(File(good, data).substr(0, 8 + good.size() + 13), "truncated");
  ExpectError(File(good, data + "y"), "after the last tensor");
  ExpectError(File("{\"a\":", data), "not JSON");
  ExpectError(File("[]", data), "not a JSON object");
  ExpectError(File(std::string(1000, '['), data), "not JSON");
  ExpectError(File(R"({"a":3})", data), "tensor a is not an object");
  ExpectError(with("\"dtype\":\"F32\",", ""), "tensor a has no dtype");
  ExpectError(with("F32", "I64"), "tensor a has dtype I64; supported are F32");
  ExpectError(with("\"shape\":[2],", ""), "tensor a has no shape");
  ExpectError(with("[2]", "[-2]"), "no count");
  ExpectError(with("[2]", "[2.5]"), "no count");
  ExpectError(with("[2]", "[3]"), "tensor a has 8 bytes where its shape takes 12");
  ExpectError(with("[2]", "[4294967296,4294967296]"), "impossible shape");
  ExpectError(with("[2]", "[1,1,1,1,1,1,1,1,2]"), "too many dimensions");
  ExpectError(with("[0,8]", "[0]"), "data_offsets");
  ExpectError(with("[0,8]", "[8,0]"), "outside");
  ExpectError(with("[0,8]", "[-8,0]"), "outside");
  ExpectError(with("[0,8]", "[0,18446744073709551615]"), "outside");
  ExpectError(with("[8,14]", "[6,12]"), "overlaps");
  ExpectError(with("[0,8]", "[4,12]"), "hole before tensor a");
}

TEST_F(SafetensorsTest, ADirectoryOrAMissingFileIsAnError) {
  EXPECT_EQ(SafetensorsFile::Open(folder_.path() + "/none").status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_FALSE(SafetensorsFile::Open(folder_.path()).ok());
}

TEST_F(SafetensorsTest, RandomDamageNeverReadsOutside) {
  std::mt19937 random(1);
  const std::string good = File(kTwo, std::string(14, 'x'));
  for (int round = 0; round < 500; ++round) {
    std::string bytes = good;
    for (uint32_t i = 0; i <= random() % 4; ++i) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    if (random() % 4 == 0) bytes.resize(1 + random() % bytes.size());
    const auto file = Open(bytes);
    if (!file.ok()) continue;
    for (const auto& [name, tensor] : file->tensors()) {
      std::vector<float> out(tensor.data.size() / (tensor.type == TensorType::kF32 ? 4 : 2));
      ConvertToF32(tensor, out);  // the sanitizers watch
    }
  }
}

}  // namespace
}  // namespace kvpool

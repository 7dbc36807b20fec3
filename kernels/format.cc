// Sizes of sealed blocks. See format.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/format.h"

#include "common/ids.h"
#include "kernels/geometry.h"

namespace kvpool {

SealedShape ShapeOf(const Geometry& geometry, SealedFormat format) {
  constexpr uint32_t kHalf = 2;
  SealedShape shape{.format = format,
                    .key_dim = geometry.key_dim,
                    .value_dim = geometry.value_dim,
                    .value_groups = CeilDiv(geometry.value_dim, kValueChannels)};
  const uint32_t code_rows = format == SealedFormat::kInt4 ? kSealedRows / 2 : kSealedRows;
  uint32_t at = 0;
  const auto take = [&at](uint32_t bytes) {
    at += bytes;
    return at - bytes;
  };
  shape.key_codes = take(code_rows * shape.key_dim);
  shape.value_codes = take(code_rows * shape.value_dim);
  if (format == SealedFormat::kFp8) {
    shape.key_scales = take(sizeof(float));
    shape.value_scales = take(sizeof(float));
  } else {
    shape.key_scales = take(kHalf * shape.key_dim);
    shape.key_zeros = take(kHalf * shape.key_dim);
    shape.value_scales = take(kHalf * kSealedRows * shape.value_groups);
    shape.value_zeros = take(kHalf * kSealedRows * shape.value_groups);
  }
  shape.bytes = at;
  shape.granules = CeilDiv(at, kGranuleBytes);
  return shape;
}

const char* NameOf(SealedFormat format) {
  switch (format) {
    case SealedFormat::kFp8:
      return "fp8";
    case SealedFormat::kInt8:
      return "int8";
    case SealedFormat::kInt4:
      return "int4";
    case SealedFormat::kNone:
      break;
  }
  return "native";
}

}  // namespace kvpool

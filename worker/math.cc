// Which BLAS routine for which shape, and the element-wise rest.
//
// SPDX-License-Identifier: Apache-2.0
#include "worker/math.h"

#include <cblas.h>

#include <algorithm>
#include <cmath>

namespace kvpool {
namespace {

// Below this many rows one matrix-vector product a row is faster than sgemm, which packs the whole
// weight matrix each time: 34 against 8 GFLOP/s for one row of a 4096 x 256 product.
constexpr size_t kMinGemmRows = 8;

}  // namespace

void SetMathThreads(uint32_t threads) { openblas_set_num_threads(static_cast<int>(threads)); }

void MatMul(const MatMulShape& shape, const float* x, const float* weights, float* y) {
  const int rows = static_cast<int>(shape.rows), in = static_cast<int>(shape.in);
  const int out = static_cast<int>(shape.out);
  const size_t stride = shape.in_stride == 0 ? shape.in : shape.in_stride;
  const float beta = shape.accumulate == Accumulate::kAdd ? 1.0f : 0.0f;
  if (shape.rows >= kMinGemmRows) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, out, in, 1.0f, x,
                static_cast<int>(stride), weights, in, beta, y, out);
    return;
  }
  for (size_t row = 0; row < shape.rows; ++row) {
    cblas_sgemv(CblasRowMajor, CblasNoTrans, out, in, 1.0f, weights, in, x + row * stride, 1, beta,
                y + row * shape.out, 1);
  }
}

void RmsNorm(const float* x, const float* weight, size_t rows, size_t width, float eps,
             float* out) {
  for (size_t row = 0; row < rows; ++row, x += width, out += width) {
    const float squares = cblas_sdot(static_cast<int>(width), x, 1, x, 1);
    const float scale = 1.0f / std::sqrt(squares / static_cast<float>(width) + eps);
    for (size_t i = 0; i < width; ++i) out[i] = x[i] * scale * weight[i];
  }
}

void SwiGlu(size_t rows, size_t width, float* gate_up) {
  for (size_t row = 0; row < rows; ++row, gate_up += 2 * width) {
    const float* up = gate_up + width;
    for (size_t i = 0; i < width; ++i) {
      gate_up[i] = gate_up[i] / (1.0f + std::exp(-gate_up[i])) * up[i];
    }
  }
}

double LogSumExp(const float* logits, size_t count) {
  const float max = *std::max_element(logits, logits + count);
  double sum = 0;
  for (size_t i = 0; i < count; ++i) sum += std::exp(logits[i] - max);
  return max + std::log(sum);
}

}  // namespace kvpool

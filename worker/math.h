// The dense mathematics of a transformer layer on row-major f32 matrices, products by OpenBLAS.
//
// Called by one thread at a time: OpenBLAS is Debian's serial build.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvpool {

enum class Accumulate : uint8_t { kOverwrite, kAdd };

struct MatMulShape {
  size_t rows = 0;
  size_t in = 0;
  size_t out = 0;
  size_t in_stride = 0;  // floats between rows of x; 0: `in`
  Accumulate accumulate = Accumulate::kOverwrite;
};

// For a build against a threaded OpenBLAS; the serial one ignores it.
void SetMathThreads(uint32_t threads);

// y[rows][out] = (y +) x[rows][in] * weights[out][in]^T.
void MatMul(const MatMulShape& shape, const float* x, const float* weights, float* y);

// out[rows][width] = x / sqrt(mean(x^2) + eps) * weight[width], row by row (arXiv 1910.07467).
void RmsNorm(const float* x, const float* weight, size_t rows, size_t width, float eps, float* out);

// gate_up[rows][2][width]: the first half becomes silu(first) * second (arXiv 2002.05202).
void SwiGlu(size_t rows, size_t width, float* gate_up);

// log(sum(exp(logits[0 .. count - 1]))), in double. NaN when a logit is NaN.
double LogSumExp(const float* logits, size_t count);

}  // namespace kvpool

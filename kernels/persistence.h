// How well a layer's important keys stay important (Scissorhands, arXiv 2305.17118, section 3.2),
// and budgets that follow from it: layers whose important keys change more are given more keys.
//
// Pure functions, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/geometry.h"
#include "kernels/planes.h"

namespace kvpool {

// Persistence ratio of each layer: of the keys that the newer half of the last `window` queries
// found important, the share that the older half found important too, all heads of the layer
// together. Only keys that all of them saw count. 1 where there is nothing to tell from. Requires
// a ring of low counts.
std::vector<double> LayerPersistence(const Geometry& geometry, const Planes& planes,
                                     uint32_t window);

// Divides `mean` keys a head times the number of layers: each layer gets `least` (<= mean), and of
// the rest a share in proportion to 1 + gain * (1 - persistence). The sum is never above the whole,
// and below it by less than one for each layer.
std::vector<uint32_t> ShareByPersistence(const std::vector<double>& persistence, double gain,
                                         uint32_t mean, uint32_t least);

}  // namespace kvpool

// What CheckGeometry accepts, and what it says about each field it refuses.
//
// SPDX-License-Identifier: Apache-2.0
#include "kernels/geometry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

namespace kvpool {
namespace {

Geometry Good() {
  return {.layers = 2,
          .query_heads = 8,
          .kv_heads = 4,
          .key_dim = 32,
          .value_dim = 32,
          .dtype = Dtype::kBf16,
          .kv_of_layer = {0, 1, 1}};
}

TEST(Geometry, AcceptsWhatIsAllowed) {
  EXPECT_TRUE(CheckGeometry(Good()).ok());
  Geometry latent = Good();
  latent.value_dim = 0;
  EXPECT_TRUE(CheckGeometry(latent).ok());
  EXPECT_EQ(Good().model_layers(), 3u);
  EXPECT_EQ(Good().group_size(), 2u);
  EXPECT_EQ(Good().planes(), 8u);
}

TEST(Geometry, RefusesEachBadFieldByName) {
  const struct {
    std::function<void(Geometry&)> spoil;
    const char* message;
  } cases[] = {
      {[](Geometry& g) { g.layers = 0; }, "layers = 0 is outside 1..256"},
      {[](Geometry& g) { g.layers = 257; }, "layers = 257"},
      {[](Geometry& g) { g.kv_heads = 0; }, "kv_heads = 0"},
      {[](Geometry& g) { g.query_heads = 0; }, "query_heads = 0"},
      {[](Geometry& g) { g.query_heads = 9; }, "query_heads = 9 is not a multiple of kv_heads = 4"},
      {[](Geometry& g) { g.key_dim = 0; }, "key_dim = 0"},
      {[](Geometry& g) { g.key_dim = 1025; }, "key_dim = 1025"},
      {[](Geometry& g) { g.value_dim = 4294967295u; }, "value_dim = 4294967295"},
      {[](Geometry& g) { g.dtype = static_cast<Dtype>(7); }, "dtype = 7"},
      {[](Geometry& g) { g.kv_of_layer.clear(); }, "length of kv_of_layer = 0"},
      {[](Geometry& g) { g.kv_of_layer.resize(257); }, "length of kv_of_layer = 257"},
      {[](Geometry& g) { g.kv_of_layer[1] = 2; }, "kv_of_layer[1] = 2 names no cached layer"},
      {[](Geometry& g) {
         g.self_masked = {1, 3};
       },
       "self_masked[1] = 3 names no model layer"},
      {[](Geometry& g) {
         g.self_masked = {1, 1};
       },
       "self_masked[1] = 1 comes after 1"},
      {[](Geometry& g) {
         g.self_masked = {2, 0};
       },
       "self_masked[1] = 0 comes after 2"},
  };
  for (const auto& c : cases) {
    Geometry g = Good();
    c.spoil(g);
    const absl::Status status = CheckGeometry(g);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr(c.message));
  }
}

}  // namespace
}  // namespace kvpool

// What a session is charged at its peak, by hand-computed examples and by what must always hold.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/admission.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "proto/limits.h"

namespace kvpool {
namespace {

// Blocks of 16 * (8 + 8) * 4 = 1 KiB, pages of 4 KiB, 16 pages in a slab.
Layout SmallLayout() {
  return *Layout::Make({.layers = 2,
                        .query_heads = 4,
                        .kv_heads = 2,
                        .key_dim = 8,
                        .value_dim = 8,
                        .dtype = Dtype::kF32,
                        .kv_of_layer = {0, 1}},
                       64_KiB);
}

std::unique_ptr<const Policy> Make(const std::string& name, const PolicyValues& parameters = {}) {
  return MakePolicy(*MakePolicySpec(name, parameters));
}

// Of a session of at most `tokens` tokens, fed in chunks of `chunk`.
Charge Peak(const Policy& policy, uint32_t tokens, uint32_t chunk) {
  return PeakCharge(SmallLayout(), policy, {}, {.max_tokens = tokens, .chunk = chunk});
}

// 32 queries of 2 model layers x 4 heads x 8 floats and a log-sum-exp, and their positions.
constexpr int64_t kWindowBytes = 32 * (2 * 4 * (8 + 1) + 1) * 4;

TEST(Admission, FullTakesAPageForEverySixteenTokens) {
  const Charge charge = Peak(*Make("full"), 100, 64);
  EXPECT_EQ(charge.pages, 7u);
  // A position and a mass, 4 bytes each, for 4 planes of 100 rows; its queries are sampled.
  EXPECT_EQ(charge.overhead.value(), 8 * 4 * 100 + kWindowBytes);
}

TEST(Admission, ACompactingPolicyIsChargedItsBudgetAndAChunk) {
  const auto policy = Make("streaming", {{"sinks", 4}, {"recent", 60}});
  ASSERT_TRUE(policy->NextCompactAt({}).has_value());
  const uint32_t peak = policy->PeakTokens({.max_tokens = 10'000, .chunk = 64});
  ASSERT_LT(peak, 10'000u);
  const Charge charge = Peak(*policy, 10'000, 64);
  EXPECT_EQ(charge.pages, CeilDiv(peak, 16u) + 1);  // the two segments meet inside a page
  const int64_t tables = 2 * 4 * 4 * int64_t{1 + CeilDiv(peak, 16u) + peak};
  EXPECT_EQ(charge.overhead.value(), 8 * 4 * int64_t{peak} + tables + kWindowBytes);
  // Past the budget a longer session costs no more.
  EXPECT_EQ(charge, Peak(*policy, 1'000'000, 64));
}

TEST(Admission, AShortSessionOfACompactingPolicyIsChargedItsLength) {
  const auto policy = Make("scissorhands", {{"budget", 512}, {"window", 64}});
  EXPECT_EQ(Peak(*policy, 20, 64).pages, 3u);
}

TEST(Admission, ChargesGrowWithEveryArgument) {
  for (const PolicySchema& schema : PolicySchemas()) {
    const std::string& name = schema.name;
    const auto policy = Make(name);
    Charge before;
    for (uint32_t tokens = 1; tokens <= 4096; tokens += 13) {
      const Charge charge = Peak(*policy, tokens, 32);
      EXPECT_GE(charge.pages * kPageTokens, policy->PeakTokens({.max_tokens = tokens, .chunk = 32}))
          << name;
      EXPECT_GE(charge.pages, before.pages) << name;
      EXPECT_GE(charge.overhead, before.overhead) << name;
      const Charge larger = Peak(*policy, tokens, 64);
      EXPECT_GE(larger.pages, charge.pages) << name;
      before = charge;
    }
  }
}

TEST(Admission, AWorkerWithoutQueriesServesOnlyPoliciesThatNeedNone) {
  for (const PolicySchema& schema : PolicySchemas()) {
    const PolicySpec spec = *MakePolicySpec(schema.name, {});
    const auto policy = MakePolicy(spec);
    EXPECT_TRUE(CheckQueries(spec, *policy, QueryOffer::kAll).ok());
    const QueryNeed need = policy->Needs().queries;
    const absl::Status status = CheckQueries(spec, *policy, QueryOffer::kNone);
    EXPECT_EQ(status.ok(), need == QueryNeed::kNone || need == QueryNeed::kSampled) << schema.name;
  }
  const PolicySpec corm = *MakePolicySpec("corm", {});
  const absl::Status status = CheckQueries(corm, *MakePolicy(corm), QueryOffer::kNone);
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("policy corm needs"));
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("full, streaming"));
}

// What sealing saves is not counted on: a session is charged its native peak, the tables of a
// compacted segment, and a block of every head that may be partly empty.
TEST(Admission, AFormatCostsTheRoundingOfSealedBlocks) {
  const auto policy = Make("full");
  // An int4 block takes 512 bytes of a layer's 2 KiB: a page has 8 places for the blocks of 4
  // heads.
  const SealRule int4{.format = SealedFormat::kInt4, .open_rows = 16};
  ASSERT_EQ(ReservePages(SmallLayout(), SealedFormat::kInt4), 1u);
  const Charge charge = PeakCharge(SmallLayout(), *policy, int4, {.max_tokens = 100, .chunk = 64});
  EXPECT_EQ(charge.pages, 7u + 1 + 1);
  EXPECT_EQ(charge.overhead.value(), 8 * 4 * 100 + 2 * 4 * 4 * (1 + 7 + 100) + kWindowBytes);
}

TEST(Admission, AReserveThatIsTooSmallIsRefusedByTheSizeItMustHave) {
  EXPECT_TRUE(CheckReserve(SmallLayout(), SealedFormat::kNone, 0).ok());
  EXPECT_TRUE(CheckReserve(SmallLayout(), SealedFormat::kInt4, 1).ok());
  // One page a slab, and a page that takes 3 blocks of fp8 for 4 heads.
  const Layout huge = *Layout::Make({.layers = 1,
                                     .query_heads = 4,
                                     .kv_heads = 4,
                                     .key_dim = 32,
                                     .value_dim = 32,
                                     .dtype = Dtype::kBf16,
                                     .kv_of_layer = {0}},
                                    8_KiB);
  ASSERT_EQ(huge.pages_per_slab(), 1u);
  ASSERT_EQ(ReservePages(huge, SealedFormat::kFp8), 2u);
  EXPECT_TRUE(CheckReserve(huge, SealedFormat::kFp8, 2).ok());
  const absl::Status refused = CheckReserve(huge, SealedFormat::kFp8, 1);
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(refused.message().find("through 2 slabs"), std::string::npos) << refused;
  EXPECT_NE(refused.message().find("reserve_slabs is 1"), std::string::npos) << refused;
}

TEST(Admission, AFormatThatSavesNothingOrCannotBeReadIsRefusedByTheNamesOfOthers) {
  const Layout four = *Layout::Make({.layers = 2,
                                     .query_heads = 4,
                                     .kv_heads = 1,
                                     .key_dim = 128,
                                     .value_dim = 128,
                                     .dtype = Dtype::kBf16,
                                     .kv_of_layer = {0, 1}},
                                    1_MiB);
  EXPECT_TRUE(CheckFormat(four, kSealedFormats, SealedFormat::kNone).ok());
  EXPECT_TRUE(CheckFormat(four, kSealedFormats, SealedFormat::kInt4).ok());
  // 17 granules of fp8 do not fit where 16 of bf16 were.
  const absl::Status large = CheckFormat(four, kSealedFormats, SealedFormat::kFp8);
  EXPECT_EQ(large.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(large.message().find("fp8"), std::string::npos) << large;
  EXPECT_NE(large.message().find("must be native or int4"), std::string::npos) << large;
  const absl::Status none = CheckFormat(four, {}, SealedFormat::kInt4);
  EXPECT_NE(none.message().find("must be native"), std::string::npos) << none;
  EXPECT_TRUE(CheckFormat(four, {}, SealedFormat::kNone).ok());
}

TEST(Admission, SlabsAreWholeForPagesAndForOverhead) {
  const Layout layout = SmallLayout();
  ASSERT_EQ(layout.pages_per_slab(), 16u);
  EXPECT_EQ(SlabsFor(layout, {}), 0u);
  EXPECT_EQ(SlabsFor(layout, {.pages = 1}), 1u);
  EXPECT_EQ(SlabsFor(layout, {.pages = 16}), 1u);
  EXPECT_EQ(SlabsFor(layout, {.pages = 17}), 2u);
  EXPECT_EQ(SlabsFor(layout, {.pages = 16, .overhead = 1_B}), 2u);
  EXPECT_EQ(OverheadSlabs(layout, {.pages = 16, .overhead = 64_KiB}), 1u);
  EXPECT_EQ(OverheadSlabs(layout, {.pages = 16, .overhead = 64_KiB + 1_B}), 2u);
  // The largest session that the table of limits allows does not wrap.
  const Charge most = Peak(*Make("full"), limits::kSessionTokens, 1);
  EXPECT_EQ(SlabsFor(layout, most), 4096u + OverheadSlabs(layout, most));
}

TEST(Admission, ChargesAddUpAndComeBack) {
  const Charge one = Peak(*Make("full"), 100, 64);
  Charge sum;
  for (int i = 0; i < 3; ++i) sum += one;
  EXPECT_EQ(sum.pages, 21u);
  EXPECT_EQ(sum.overhead, one.overhead * 3);
  for (int i = 0; i < 3; ++i) sum -= one;
  EXPECT_EQ(sum, Charge());
}

TEST(Admission, ATenantsSlabsAreWholeForEachLayout) {
  const Layout a = SmallLayout(), same = SmallLayout();
  const Layout b = Layout::Make({.layers = 1,
                                 .query_heads = 1,
                                 .kv_heads = 1,
                                 .key_dim = 16,
                                 .value_dim = 16,
                                 .dtype = Dtype::kBf16,
                                 .kv_of_layer = {0}},
                                a.slab_bytes())
                       .value();
  TenantCharges charges;
  EXPECT_EQ(charges.Slabs(), 0u);
  EXPECT_EQ(charges.WantedSlabs(), 0u);
  charges.Add(a, {.pages = 8});
  charges.Add(same, {.pages = 8, .overhead = 1_B});  // of another worker
  EXPECT_EQ(charges.Slabs(), 2u) << "16 pages fit a slab together, the overhead takes another";
  charges.Add(b, {});
  EXPECT_EQ(charges.Slabs(), 2u);
  EXPECT_EQ(charges.WantedSlabs(), 3u) << "one to begin with";
  charges.Add(b, {.pages = 1});
  EXPECT_EQ(charges.Slabs(), 3u);
  EXPECT_EQ(charges.UsableSlabs(5), 4u);
  EXPECT_EQ(charges.UsableSlabs(0), 0u);
}

TEST(ShareableTokens, AreThosePastWhichAPolicyMustSeeWhatIsFed) {
  const auto shareable = [](const std::string& name, const PolicyValues& values, uint32_t prompt) {
    return ShareableTokens(SmallLayout(), *Make(name, values),
                           {.prompt_tokens = prompt, .max_tokens = 5000, .chunk = 64});
  };
  EXPECT_EQ(shareable("full", {}, 1000), 999u) << "the last token's query is asked";
  EXPECT_EQ(shareable("full", {}, 1), 0u);
  EXPECT_EQ(shareable("streaming", {{"sinks", 4}, {"recent", 92}, {"slack", 16}}, 1000), 112u)
      << "what comes behind is fed to a cache that was compacted";
  const PolicyNeeds snap = Make("snapkv")->Needs();
  ASSERT_EQ(snap.queries, QueryNeed::kPrompt);
  EXPECT_EQ(shareable("snapkv", {}, 1000), 1000 - snap.prompt_rows);
  EXPECT_EQ(shareable("snapkv", {}, snap.prompt_rows), 0u);
  EXPECT_EQ(shareable("fastgen", {}, 1000), 0u) << "profiles the whole prompt";
  EXPECT_EQ(shareable("kvcompress", {{"votes", "all"}}, 1000), 0u);
}

}  // namespace
}  // namespace kvpool

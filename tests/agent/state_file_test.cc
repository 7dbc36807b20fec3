// A state file comes back as it was or not at all.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/state_file.h"

#include <capnp/dynamic.h>
#include <capnp/message.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>
#include <random>
#include <string>

#include "agent/manager_messages.h"
#include "proto/limits.h"
#include "tests/integration/process.h"

namespace kvpool {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

const StateOwner kOwner{.agent = "gpu-0", .slab_bytes = 2_MiB};

KeptOrders Orders() {
  KeptOrders orders{.epoch = 7};
  orders.tenants.push_back(
      {.tenant = TenantId(3),
       .name = "chat",
       .lease_slabs = 4,
       .limit_slabs = 40,
       .policy = *MakePolicySpec("scissorhands", {{"budget", 512}, {"format", "int4"}}),
       .token_hashes = {Sha256("a"), Sha256("b")},
       .grace = {.cold = milliseconds(1500), .running = milliseconds(9000)},
       .over_deadline = OverDeadline::kPreempt,
       .floor_slabs = 6});
  orders.tenants.push_back({.tenant = TenantId(9), .name = "batch"});
  return orders;
}

TEST(StateFile, WhatWasKeptComesBack) {
  const auto read = DecodeState(EncodeState(kOwner, Orders()), kOwner);
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_TRUE(read->has_value());
  EXPECT_EQ(**read, Orders());
}

TEST(StateFile, ATenantOfAnOlderManagersKeepsItsEndlessGrace) {
  KeptOrders orders = Orders();
  orders.tenants[0].grace = kEndlessGrace;
  orders.tenants[0].over_deadline = OverDeadline::kHold;
  const auto read = DecodeState(EncodeState(kOwner, orders), kOwner);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(**read, orders);
}

// A field that a later protocol brings must not be lost over a restart.
TEST(StateFile, KeepsEveryFieldOfAnOrder) {
  capnp::MallocMessageBuilder message;
  auto state = message.initRoot<rpc::AgentState>();
  ToProto(Orders(), kOwner.agent, kOwner.slab_bytes, state);
  const auto order = capnp::toDynamic(state.asReader().getOrders().getTenants()[0]);
  for (const auto field : order.getSchema().getFields()) {
    const std::string name = field.getProto().getName().cStr();
    if (name == "seq") continue;  // leases of the next life are new
    EXPECT_TRUE(order.has(field, capnp::HasMode::NON_DEFAULT)) << name << " is not kept";
  }
}

TEST(StateFile, NothingThatWasChangedIsTaken) {
  const std::string good = EncodeState(kOwner, Orders());
  std::mt19937 random(11);
  for (int round = 0; round < 2000; ++round) {
    std::string bad = good;
    if (round % 2 == 0) {
      bad[random() % bad.size()] ^= static_cast<char>(1 << random() % 8);
    } else {
      bad.resize(random() % bad.size());
    }
    EXPECT_TRUE(absl::IsInvalidArgument(DecodeState(bad, kOwner).status())) << round;
  }
}

TEST(StateFile, TheRightSumOverRubbishIsStillRubbish) {
  std::mt19937 random(12);
  for (int round = 0; round < 500; ++round) {
    std::string body(8 * (random() % 64), '\0');
    for (char& byte : body) byte = static_cast<char>(random() % 4 == 0 ? random() : 0);
    const Sha256Hash sum = Sha256(body);
    const std::string content =
        "kvpstat1" + std::string(reinterpret_cast<const char*>(sum.data()), sum.size()) + body;
    // A message of zeros is one of an agent without a name.
    EXPECT_FALSE(DecodeState(content, kOwner).ok()) << round;
  }
}

TEST(StateFile, AnotherAgentsFileIsRefusedAndOneForOtherSlabsLeftAlone) {
  const std::string content = EncodeState(kOwner, Orders());
  const auto other = DecodeState(content, {.agent = "gpu-1", .slab_bytes = 2_MiB});
  EXPECT_THAT(std::string(other.status().message()), HasSubstr("it is of agent \"gpu-0\""));
  const auto resized = DecodeState(content, {.agent = "gpu-0", .slab_bytes = 4_MiB});
  ASSERT_TRUE(resized.ok()) << resized.status();
  EXPECT_FALSE(resized->has_value());
  std::string newer = content;
  newer[7] = '2';
  EXPECT_THAT(std::string(DecodeState(newer, kOwner).status().message()),
              HasSubstr("written by a newer version"));
}

TEST(StateFile, OnDiskItIsReplacedWholeAndNobodyElseMayReadIt) {
  const TempDir dir;
  const std::string path = dir / "state";
  const auto missing = ReadState(path, kOwner);
  ASSERT_TRUE(missing.ok()) << missing.status();
  EXPECT_FALSE(missing->has_value());
  KeptOrders orders = Orders();
  for (uint64_t epoch = 1; epoch <= 3; ++epoch) {
    orders.epoch = epoch;
    ASSERT_TRUE(WriteState(path, EncodeState(kOwner, orders)).ok());
    EXPECT_EQ(**ReadState(path, kOwner), orders);
  }
  struct stat info {};
  ASSERT_EQ(stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

TEST(StateFile, ErrorsNameTheFileAndWhatToDo) {
  const TempDir dir;
  const absl::Status nowhere = WriteState(dir / "no/such/folder", "x");
  EXPECT_TRUE(absl::IsNotFound(nowhere)) << nowhere;
  EXPECT_THAT(std::string(nowhere.message()), HasSubstr("no/such/folder"));
  const std::string path = dir / "state";
  std::ofstream(path) << "old";
  std::filesystem::create_symlink("/dev/full", path + ".new");
  const absl::Status full = WriteState(path, "x");
  EXPECT_TRUE(absl::IsResourceExhausted(full)) << full;
  EXPECT_EQ(std::filesystem::file_size(path), 3u) << "the old one is still there";
  std::ofstream(path) << "kvpstat1";
  EXPECT_THAT(std::string(ReadState(path, kOwner).status().message()),
              HasSubstr(path + " cannot be used: it is no state file of an agent; remove it"));
  std::ofstream(path) << std::string(limits::kStateFileBytes + 1, 'x');
  EXPECT_THAT(std::string(ReadState(path, kOwner).status().message()),
              HasSubstr("larger than 4 MiB"));
}

}  // namespace
}  // namespace kvpool

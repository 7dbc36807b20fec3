// Election, the chain of guarded writes, and changes too large for one transaction.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/etcd_store.h"

#include <algorithm>
#include <boost/json.hpp>
#include <chrono>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/json.h"

namespace kvpool {
namespace {

namespace json = boost::json;

// etcd's own defaults are 128 operations and 1.5 MiB (--max-txn-ops, --max-request-bytes); the
// leader key, the pending one and what frames the keys need room, too.
constexpr size_t kWritesPerTxn = 120;
constexpr size_t kBytesPerTxn = 3 << 19;
constexpr size_t kFrameBytes = 16 << 10;
constexpr size_t kFrameBytesPerWrite = 64;
constexpr size_t kMostBytes = kBytesPerTxn - kFrameBytes;

constexpr auto kRetryPause = std::chrono::milliseconds(50);

// etcd must have answered within this part of the leadership's time, so that there are several
// attempts to renew it.
constexpr int kDeadlineParts = 4;
// This part is given away for clocks that do not run alike.
constexpr int kMarginParts = 10;

std::string ToText(const Store::Changes& changes) {
  json::object object;
  for (const auto& [key, value] : changes) {
    object[key] = value.has_value() ? json::value(*value) : json::value(nullptr);
  }
  return json::serialize(object);
}

absl::StatusOr<Store::Changes> FromText(const std::string& text) {
  const auto value = ParseJson(text, kBytesPerTxn);
  if (!value.ok()) return value.status();
  if (!value->is_object()) return absl::InvalidArgumentError("it is no object");
  Store::Changes changes;
  for (const auto& [key, item] : value->get_object()) {
    if (!item.is_string() && !item.is_null()) return absl::InvalidArgumentError("it is no text");
    auto& change = changes[std::string(key)];
    if (item.is_string()) change = std::string(item.get_string());
  }
  return changes;
}

}  // namespace

EtcdStore::EtcdStore(EtcdStoreOptions options)
    : options_(std::move(options)),
      client_({.endpoints = options_.endpoints,
               .tls = options_.tls,
               .user = options_.user,
               .password = options_.password,
               .deadline = options_.ttl / kDeadlineParts}) {}

EtcdStore::~EtcdStore() { Resign(); }

void EtcdStore::Resign() {
  epoch_ = 0;
  // When it fails, the next campaign tries again, or the lease ends by itself.
  if (lease_ != 0 && client_.Revoke(lease_).ok()) lease_ = 0;
}

absl::Status EtcdStore::Lost(const std::string& why, Change change) {
  Resign();
  const std::string text = "this manager does not lead any more: " + why;
  switch (change) {
    case Change::kNone:
      return absl::CancelledError(text);
    case Change::kNotMade:
      return absl::CancelledError(text + "; nothing was changed");
    case Change::kUnknown:
      break;
  }
  return absl::UnknownError(text + "; whether the change was made is unknown, look again");
}

// The lease runs from when etcd has got the request, which is later than when it was sent.
TimePoint EtcdStore::Until(TimePoint sent, Duration ttl) const {
  return sent + ttl - ttl / kMarginParts;
}

absl::StatusOr<Store::Standing> EtcdStore::Campaign() {
  Resign();
  // A look first: a lease is a write to etcd's disk.
  const absl::StatusOr<EtcdKey> leader = client_.Get(LeaderKey());
  if (!leader.ok()) return leader.status();
  if (leader->create_revision != 0) return Standing{.leader = leader->value};
  const TimePoint sent = BootClock::now();
  const absl::StatusOr<EtcdClient::Lease> lease = client_.Grant(options_.ttl);
  if (!lease.ok()) return lease.status();
  lease_ = lease->id;
  const absl::StatusOr<EtcdTxn> txn = client_.Txn(
      {.key = LeaderKey()}, {{.key = LeaderKey(), .value = options_.advertise, .lease = lease_}});
  if (!txn.ok() || !txn->succeeded) {
    Resign();  // also when the key was created and only the answer is missing
    if (!txn.ok()) return txn.status();
    return Standing{.leader = txn->guarded.value};
  }
  epoch_ = turn_ = txn->revision;
  leads_until_ = Until(sent, lease->ttl);
  return Standing{.leads_until = leads_until_, .leader = options_.advertise};
}

absl::StatusOr<TimePoint> EtcdStore::Renew() {
  if (epoch_ == 0) return absl::CancelledError("this manager does not lead");
  const TimePoint sent = BootClock::now();
  const absl::StatusOr<std::optional<Duration>> ttl = client_.KeepAlive(lease_);
  if (!ttl.ok()) return ttl.status();
  if (!ttl->has_value()) return Lost("its lease at etcd has expired or was revoked", Change::kNone);
  // The lease may live on without the key.
  const absl::StatusOr<EtcdKey> leader = client_.Get(LeaderKey());
  if (!leader.ok()) return leader.status();
  if (leader->create_revision == 0) return Lost("the leader key is gone", Change::kNone);
  if (leader->create_revision != epoch_) return Lost(leader->value + " does", Change::kNone);
  return leads_until_ = Until(sent, **ttl);
}

absl::StatusOr<Store::Contents> EtcdStore::Begin() {
  if (epoch_ == 0) return absl::CancelledError("this manager does not lead");
  const absl::StatusOr<EtcdKey> pending = client_.Get(PendingKey());
  if (!pending.ok()) return pending.status();
  if (pending->create_revision != 0) {
    const absl::StatusOr<Changes> changes = FromText(pending->value);
    if (!changes.ok()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "etcd's key ", PendingKey(), " is damaged: ", std::string(changes.status().message()),
          "; restore etcd from a backup"));
    }
    if (absl::Status status = Finish(*changes); !status.ok()) return status;
  }
  const absl::StatusOr<std::vector<EtcdKey>> keys = client_.List(RecordKey(""));
  if (!keys.ok()) return keys.status();
  Contents contents{.epoch = static_cast<uint64_t>(epoch_)};
  for (const EtcdKey& key : *keys) {
    contents.records[key.key.substr(RecordKey("").size())] = key.value;
  }
  return contents;
}

std::vector<std::vector<EtcdWrite>> EtcdStore::Transactions(const Changes& changes) const {
  std::vector<std::vector<EtcdWrite>> transactions(1);
  size_t bytes = 0;
  for (const auto& [key, value] : changes) {
    EtcdWrite write{.key = RecordKey(key), .value = value};
    const size_t size =
        write.key.size() + (value.has_value() ? value->size() : 0) + kFrameBytesPerWrite;
    const bool full = transactions.back().size() == kWritesPerTxn || bytes + size > kMostBytes;
    if (full && !transactions.back().empty()) {
      transactions.emplace_back();
      bytes = 0;
    }
    transactions.back().push_back(std::move(write));
    bytes += size;
  }
  return transactions;
}

absl::Status EtcdStore::Write(const Changes& changes) {
  if (epoch_ == 0) return absl::CancelledError("this manager does not lead");
  const auto transactions = Transactions(changes);
  if (transactions.size() == 1) return Commit(transactions[0]);
  const std::string text = ToText(changes);
  if (text.size() > kMostBytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the change is ", text.size(), " bytes, etcd takes ", kMostBytes,
                     " in one request; nothing was changed; change fewer tenants at once"));
  }
  if (absl::Status status = Commit({{.key = PendingKey(), .value = text}}); !status.ok()) {
    return status;
  }
  // From here on it is made, whatever comes: who leads next finishes what is left. This manager
  // must not write anything else before.
  if (!Finish(changes).ok()) Resign();
  return absl::OkStatus();
}

absl::Status EtcdStore::Finish(const Changes& changes) {
  auto transactions = Transactions(changes);
  transactions.back().push_back({.key = PendingKey(), .value = std::nullopt});
  for (const std::vector<EtcdWrite>& writes : transactions) {
    if (absl::Status status = Commit(writes); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status EtcdStore::Commit(const std::vector<EtcdWrite>& writes) {
  std::vector<EtcdWrite> all = writes;
  all.push_back({.key = LeaderKey(), .value = options_.advertise, .lease = lease_});
  Change lost = Change::kNotMade;
  while (true) {
    const absl::StatusOr<EtcdTxn> txn =
        client_.Txn({.key = LeaderKey(), .create_revision = epoch_, .mod_revision = turn_}, all);
    if (txn.ok()) {
      const bool ours = lost == Change::kUnknown && txn->guarded.create_revision == epoch_;
      if (!txn->succeeded && !ours) return Lost("another one does, or nobody", lost);
      // An attempt whose answer got lost is the only one that can have written the key.
      turn_ = txn->succeeded ? txn->revision : txn->guarded.mod_revision;
      return absl::OkStatus();
    }
    const std::string error(txn.status().message());
    if (absl::IsNotFound(txn.status())) return Lost("its lease at etcd has ended", lost);
    if (!IsUnknownOutcome(txn.status())) {
      if (lost == Change::kUnknown) return Lost("etcd refuses the change (" + error + ")", lost);
      return absl::InternalError("etcd refuses the change: " + error +
                                 "; nothing was changed; look at etcd's space and its log");
    }
    lost = Change::kUnknown;
    const absl::StatusOr<TimePoint> until = Renew();
    if (absl::IsCancelled(until.status())) return Lost(std::string(until.status().message()), lost);
    if (BootClock::now() >= leads_until_) return Lost("etcd does not answer: " + error, lost);
    std::this_thread::sleep_for(kRetryPause);
  }
}

}  // namespace kvpool

// Whether this manager leads: campaigns, takes office, keeps the leadership, and stands by again
// when it is lost. Owns the store and the thread that it runs on. KJ thread.
//
//   standby -> Campaign -> TakeOffice -> on_elected -> leads -> Renew ... -> lost, on_lost ->
//   standby
//
// A manager leads only until the moment that the store has named: one that was suspended, or that
// the store does not answer, gives no orders after it, whatever it has not noticed yet.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kj/async.h>
#include <kj/timer.h>

#include <boost/asio/thread_pool.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/secret.h"
#include "manager/records.h"
#include "manager/store.h"

namespace kvpool {

// What a leader begins with.
struct Office {
  uint64_t epoch = 0;
  TimePoint leads_until;
  Records records;
  // Made because there was none; to be shown once.
  std::optional<std::string> new_operator_token;
};

struct LeadershipOptions {
  std::optional<std::string> operator_token;  // from the settings: no need to make one
  // This manager is about to lead, and does once the promise resolves.
  std::function<kj::Promise<void>(Office)> on_elected;
  std::function<void()> on_lost;
};

class Leadership final : private kj::TaskSet::ErrorHandler {
 public:
  Leadership(kj::Timer& timer, std::unique_ptr<Store> store, LeadershipOptions options);

  // The first campaign, at once: blocks. The office when this manager leads; then `on_elected` is
  // not called, and it leads when this returns. None when another one leads, or the store is away:
  // it then goes on campaigning. An error when the settings or the records are not right.
  absl::StatusOr<std::optional<Office>> Start();

  bool Leads() const { return in_office_ && BootClock::now() < leads_until_; }
  // OK, or Cancelled with who leads instead.
  absl::Status CheckLeads() const;
  // How often this manager came to lead.
  uint64_t elections() const { return elections_; }

  // Store::Write on the store's thread.
  kj::Promise<absl::Status> Write(Store::Changes changes);

 private:
  struct Round {
    std::string leader;            // when this manager does not lead
    std::optional<Office> office;  // when it does
  };

  static absl::StatusOr<Round> Campaign(Store& store,
                                        const std::optional<std::string>& operator_token);
  kj::Promise<void> StandBy();
  kj::Promise<void> Lead();
  void Elected(const Office& office);
  // Does nothing when it is known already.
  void Lost(const std::string& why);
  enum class Cause : uint8_t { kLost, kOtherLeads, kStoreAway };
  void StandsBy(Cause cause, const std::string& why);
  // A campaign that was not won.
  void Note(const absl::StatusOr<Round>& round);
  void taskFailed(kj::Exception&& error) override;

  kj::Timer& timer_;
  const LeadershipOptions options_;
  const Logger log_;
  bool in_office_ = false;  // on_elected has been called, and on_lost not since
  TimePoint leads_until_;
  std::string standby_;  // why, or who leads
  Cause cause_ = Cause::kLost;
  uint64_t elections_ = 0;
  std::unique_ptr<Store> store_;
  boost::asio::thread_pool store_thread_{1};  // ends before the store
  kj::TaskSet tasks_;
};

}  // namespace kvpool

// The loop, and what a new leader reads.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/leadership.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "common/kj_asio.h"
#include "manager/control.h"

namespace kvpool {
namespace {

// Between two campaigns: a leader's end is noticed this late.
constexpr auto kCampaignPause = 250 * kj::MILLISECONDS;
// A leadership is renewed when this part of its time has passed.
constexpr int kRenewParts = 3;
constexpr Duration kShortestRenewPause = std::chrono::milliseconds(50);

absl::StatusOr<Office> TakeOffice(Store& store, TimePoint leads_until,
                                  const std::optional<std::string>& operator_token) {
  const absl::StatusOr<Store::Contents> contents = store.Begin();
  if (!contents.ok()) return contents.status();
  absl::StatusOr<Records> records = ReadRecords(*contents);
  if (!records.ok()) return records.status();
  Office office{.epoch = contents->epoch, .leads_until = leads_until, .records = *records};
  const bool has_admin =
      std::any_of(records->operators.begin(), records->operators.end(),
                  [](const Operator& each) { return each.scope == Scope::kAdmin; });
  if (operator_token.has_value() || has_admin) return office;
  absl::StatusOr<std::string> token = NewToken();
  if (!token.ok()) return token.status();
  const Sha256Hash hash = Sha256(*token);
  const Operator first{.name = NameOfFirst(hash), .scope = Scope::kAdmin, .token = hash};
  AuditLog audit(records->audit);
  const std::vector<AuditEntry> entries = audit.Number({OperatorCreated("manager", first)});
  Store::Changes changes = SaveOperator(first);
  changes.merge(SaveAudit(entries, audit.Dropped(entries.size())));
  if (absl::Status status = store.Write(changes); !status.ok()) return status;
  office.records.operators.push_back(first);
  office.records.audit.insert(office.records.audit.end(), entries.begin(), entries.end());
  office.new_operator_token = *std::move(token);
  return office;
}

// The store may work later, without anybody's help.
bool MayPass(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
         absl::IsUnknown(status) || absl::IsCancelled(status);
}

}  // namespace

Leadership::Leadership(kj::Timer& timer, std::unique_ptr<Store> store, LeadershipOptions options)
    : timer_(timer),
      options_(std::move(options)),
      log_("leadership"),
      store_(std::move(store)),
      tasks_(*this) {}

void Leadership::taskFailed(kj::Exception&& error) {
  log_.Error("the campaign stopped", {{"error", error.getDescription().cStr()}});
}

absl::StatusOr<Leadership::Round> Leadership::Campaign(
    Store& store, const std::optional<std::string>& operator_token) {
  const absl::StatusOr<Store::Standing> standing = store.Campaign();
  if (!standing.ok()) return standing.status();
  if (!standing->leads_until.has_value()) return Round{.leader = standing->leader};
  absl::StatusOr<Office> office = TakeOffice(store, *standing->leads_until, operator_token);
  if (office.ok()) return Round{.office = *std::move(office)};
  store.Resign();
  return office.status();
}

absl::StatusOr<std::optional<Office>> Leadership::Start() {
  absl::StatusOr<Round> round = Campaign(*store_, options_.operator_token);
  if (!round.ok() && !MayPass(round.status())) return round.status();
  if (round.ok() && round->office.has_value()) {
    Elected(*round->office);
    tasks_.add(Lead());
    return std::move(round->office);
  }
  Note(round);
  tasks_.add(StandBy());
  return std::optional<Office>();
}

absl::Status Leadership::CheckLeads() const {
  if (Leads()) return absl::OkStatus();
  return absl::CancelledError(standby_.empty() ? "standby; nobody is known to lead"
                                               : "standby; " + standby_);
}

void Leadership::Elected(const Office& office) {
  in_office_ = true;
  leads_until_ = office.leads_until;
  standby_.clear();
  cause_ = Cause::kLost;
  ++elections_;
  log_.Info("this manager leads", {{"epoch", office.epoch}});
}

void Leadership::Lost(const std::string& why) {
  if (!in_office_) return;
  in_office_ = false;
  StandsBy(Cause::kLost, why);
  options_.on_lost();
}

void Leadership::StandsBy(Cause cause, const std::string& why) {
  // A store that is away fails in many words.
  const bool news = why != standby_ && (cause != Cause::kStoreAway || cause != cause_);
  standby_ = why;
  cause_ = cause;
  if (!news) return;
  log_.Warn("this manager stands by", {{"why", why}});
}

void Leadership::Note(const absl::StatusOr<Round>& round) {
  if (!round.ok()) return StandsBy(Cause::kStoreAway, std::string(round.status().message()));
  if (!round->leader.empty()) StandsBy(Cause::kOtherLeads, round->leader + " leads");
}

kj::Promise<absl::Status> Leadership::Write(Store::Changes changes) {
  return Offload(store_thread_, [store = store_.get(),
                                 changes = std::move(changes)] { return store->Write(changes); })
      .then([this](absl::Status status) {
        if (absl::IsCancelled(status) || absl::IsUnknown(status))
          Lost(std::string(status.message()));
        return status;
      });
}

kj::Promise<void> Leadership::StandBy() {
  return timer_.afterDelay(kCampaignPause)
      .then([this] {
        return Offload(store_thread_, [store = store_.get(), token = options_.operator_token] {
          return Campaign(*store, token);
        });
      })
      .then([this](absl::StatusOr<Round> round) -> kj::Promise<void> {
        if (round.ok() && round->office.has_value()) {
          return options_.on_elected(*round->office).then([this, office = *round->office] {
            Elected(office);
            return Lead();
          });
        }
        Note(round);
        return StandBy();
      });
}

kj::Promise<void> Leadership::Lead() {
  if (leads_until_ == TimePoint::max()) return kj::READY_NOW;
  const Duration pause =
      std::max(kShortestRenewPause, (leads_until_ - BootClock::now()) / kRenewParts);
  return timer_.afterDelay(pause.count() * kj::NANOSECONDS)
      .then([this] {
        return Offload(store_thread_, [store = store_.get()] { return store->Renew(); });
      })
      .then([this](absl::StatusOr<TimePoint> until) -> kj::Promise<void> {
        if (until.ok()) {
          leads_until_ = *until;
        } else if (absl::IsCancelled(until.status()) || !Leads()) {
          Lost(std::string(until.status().message()));
          return StandBy();
        } else {
          log_.Warn("the leadership was not renewed",
                    {{"error", std::string(until.status().message())}});
        }
        return Lead();
      });
}

}  // namespace kvpool

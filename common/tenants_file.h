// What an operator says about a tenant, and the YAML file that says it for many. Used by the
// manager and by kvpoolctl, so that both refuse the same things in the same words. It knows nothing
// of ids, leases or the cluster's capacity. Values, any thread.
//
//   version: 1
//   tenants:
//     - name: chat
//       guaranteed: 8 MiB
//       limit: 24 MiB
//       policy: {name: scissorhands, budget: 256}   # or auto: see policy_ladder.h
//       floors: {gpu-0: 4 MiB}                # the rest may be left out, as may the policy
//       weight: 2
//       priority: 7
//       borrowing: on
//       grace: {cold: 2 s, running: 15 s}
//       over_deadline: hold
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/policy_ladder.h"
#include "common/policy_spec.h"
#include "common/units.h"

namespace kvpool {

// Whether a tenant may hold more than its guarantee while nobody else has a claim to it.
enum class Borrowing : uint8_t { kOn, kOff };

// What becomes of a tenant that still holds more than its lease when the grace has passed. Either
// way it gets nothing new.
enum class OverDeadline : uint8_t {
  kHold,     // it keeps what its running sessions hold until they end
  kPreempt,  // running sessions are ended, one after the other, until it fits
};

// How long a lowered lease waits for memory to be given back.
struct Grace {
  Duration cold = std::chrono::seconds(2);      // that idle sessions and caches hold
  Duration running = std::chrono::seconds(15);  // that running sessions hold

  bool operator==(const Grace&) const = default;
};

inline constexpr int64_t kMaxWeight = 1000;
inline constexpr int64_t kMaxPriority = 9;
inline constexpr Duration kMaxGrace = std::chrono::hours(1);

// A tenant's budget over the whole cluster, and what to do to its sessions.
struct TenantSpec {
  std::string name;
  Bytes guaranteed;                         // can always be held, where its demand can be placed
  Bytes limit;                              // never exceeded
  PolicySpec policy = DefaultPolicySpec();  // unless said otherwise; with a ladder its first rung
  std::optional<PolicyLadder> ladder;       // policy `auto`
  std::map<std::string, Bytes> floors;      // agent -> the part of `guaranteed` that lies there
  int64_t weight = 1;    // 1..kMaxWeight: its share of what is borrowed, among its priority
  int64_t priority = 5;  // 0..kMaxPriority: higher ones borrow first; guarantees know none
  Borrowing borrowing = Borrowing::kOn;
  Grace grace;
  OverDeadline over_deadline = OverDeadline::kHold;

  bool operator==(const TenantSpec&) const = default;
};

// Letters a-z, digits and hyphens, with a letter or digit at both ends, at most limits::kNameBytes.
// The rule for tenants' and agents' names. `what` begins the message: "tenant", "agent".
absl::Status CheckName(const std::string& what, const std::string& name);

// Sets the policy, and the ladder where it is `auto`.
void SetLadder(PolicyLadder ladder, TenantSpec* spec);
void SetPolicy(PolicySpec policy, TenantSpec* spec);
// "scissorhands(budget=256,...)", or what ToString says of the ladder.
std::string PolicyText(const TenantSpec& spec);

// The names' rules; floors <= guaranteed <= limit, within 0..limits::kTenantBytes; at most
// limits::kFloorsPerTenant floors; the bounds above; and the ladder as CheckLadder says.
absl::Status CheckTenantSpec(const TenantSpec& spec);

// "on", "off"; "hold", "preempt": as files and requests say it.
std::string ToString(Borrowing borrowing);
std::string ToString(OverDeadline action);

// The tenants in the file's order. Every error names file and line. Name, guaranteed and limit may
// not be left out.
absl::StatusOr<std::vector<TenantSpec>> ParseTenants(const std::string& text,
                                                     const std::string& file);
absl::StatusOr<std::vector<TenantSpec>> ReadTenantsFile(const std::string& path);

}  // namespace kvpool

// Who may use the operator API, and for what: a name, a scope and the hash of a token each. Pure: a
// change is planned (checked, nothing happens), made durable by someone else, and then committed
// here. One thread at a time.
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
#include "common/secret.h"

namespace kvpool {

// Each may do what those before it may.
enum class Scope : uint8_t {
  kRead,     // look
  kOperate,  // budgets, policies, agents
  kAdmin,    // tokens of workers and operators, the audit log
};

// "read", "operate", "admin".
std::string ToString(Scope scope);
// InvalidArgument names the three.
absl::StatusOr<Scope> ParseScope(const std::string& text);

struct Operator {
  std::string name;
  Scope scope = Scope::kRead;
  Sha256Hash token{};

  bool operator==(const Operator&) const = default;
};

// The name of an operator whose token was made without one: "admin-0f3a9c51d2e4".
std::string NameOfFirst(const Sha256Hash& token);

// The one whose token is in a file that the settings name: an admin of this name, never stored.
inline constexpr char kConfiguredOperator[] = "config";
// Who did what no operator asked for, in the audit log: nobody else may have the name.
inline constexpr char kManagerActor[] = "manager";

class OperatorTable {
 public:
  OperatorTable(const std::vector<Operator>& stored, std::optional<Sha256Hash> configured);

  // By name, without the configured one.
  const std::map<std::string, Operator>& by_name() const { return operators_; }
  // Null for a token that nobody has. The time it takes depends on the number of operators alone.
  const Operator* FindByToken(const Sha256Hash& token) const;

  // InvalidArgument for a name that cannot be; AlreadyExists; ResourceExhausted above
  // limits::kOperators.
  absl::Status CheckCreate(const std::string& name) const;
  // NotFound; FailedPrecondition for the last one who could make others, and for the configured
  // one.
  absl::StatusOr<Operator> CheckRevoke(const std::string& name) const;

  void Commit(const Operator& created) { operators_[created.name] = created; }
  void Remove(const std::string& name) { operators_.erase(name); }

 private:
  std::map<std::string, Operator> operators_;
  std::optional<Operator> configured_;
};

}  // namespace kvpool

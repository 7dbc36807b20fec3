// Checks on changes of the operators.
//
// SPDX-License-Identifier: Apache-2.0
#include "manager/operators.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/tenants_file.h"
#include "manager/tenants.h"
#include "proto/limits.h"

namespace kvpool {

std::string ToString(Scope scope) {
  switch (scope) {
    case Scope::kRead:
      return "read";
    case Scope::kOperate:
      return "operate";
    case Scope::kAdmin:
      break;
  }
  return "admin";
}

absl::StatusOr<Scope> ParseScope(const std::string& text) {
  for (const Scope scope : {Scope::kRead, Scope::kOperate, Scope::kAdmin}) {
    if (text == ToString(scope)) return scope;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("\"", text, "\" is no scope; there are read, operate and admin"));
}

std::string NameOfFirst(const Sha256Hash& token) { return "admin-" + TokenId(token); }

OperatorTable::OperatorTable(const std::vector<Operator>& stored,
                             std::optional<Sha256Hash> configured) {
  for (const Operator& each : stored) operators_[each.name] = each;
  if (configured.has_value()) {
    configured_ = {.name = kConfiguredOperator, .scope = Scope::kAdmin, .token = *configured};
  }
}

const Operator* OperatorTable::FindByToken(const Sha256Hash& token) const {
  const Operator* found = nullptr;
  for (const auto& [name, each] : operators_) {
    if (EqualInConstantTime(each.token, token)) found = &each;
  }
  if (configured_.has_value() && EqualInConstantTime(configured_->token, token)) {
    found = &*configured_;
  }
  return found;
}

absl::Status OperatorTable::CheckCreate(const std::string& name) const {
  if (absl::Status status = CheckName("operator", name); !status.ok()) return status;
  if (name == kManagerActor) {
    return absl::AlreadyExistsError(
        "\"manager\" is what the audit log calls the manager itself; take another name");
  }
  if (operators_.contains(name) || name == kConfiguredOperator) {
    return absl::AlreadyExistsError(
        absl::StrCat("operator \"", name, "\" exists; take another name, or revoke it first"));
  }
  if (operators_.size() >= limits::kOperators) {
    return absl::ResourceExhaustedError(
        absl::StrCat(operators_.size(), " operators are the most allowed; revoke one first"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Operator> OperatorTable::CheckRevoke(const std::string& name) const {
  if (configured_.has_value() && name == kConfiguredOperator) {
    return absl::FailedPreconditionError(
        "this operator's token is in the file that operator_token_file names; change it there");
  }
  const auto found = operators_.find(name);
  if (found == operators_.end()) {
    return absl::NotFoundError(absl::StrCat("operator \"", name, "\" does not exist"));
  }
  const auto admins = std::count_if(operators_.begin(), operators_.end(), [](const auto& each) {
    return each.second.scope == Scope::kAdmin;
  });
  if (found->second.scope == Scope::kAdmin && admins == 1 && !configured_.has_value()) {
    return absl::FailedPreconditionError(
        absl::StrCat("operator \"", name, "\" is the last admin; create another one first"));
  }
  return found->second;
}

}  // namespace kvpool

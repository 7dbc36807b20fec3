// The fields of a tenant, read from whatever holds them: the one list of them for files
// (YamlObject) and requests (JsonObject). Errors are the object's: a file's name file and line, a
// request's the field. Included by tenants_file.cc and tenant_json.cc only. Values, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <initializer_list>
#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/tenants_file.h"
#include "proto/limits.h"

namespace kvpool {

// Reads fields of one object into values until one of them is wrong.
template <typename Object>
class TenantFields {
 public:
  explicit TenantFields(Object& object) : object_(object) {}

  // `spec` with every field that is there; name, guaranteed and limit must be, the name unless
  // `spec` has one.
  absl::StatusOr<TenantSpec> Read(TenantSpec spec) {
    const Bytes most(limits::kTenantBytes);
    if (spec.name.empty() || object_.Has("name")) {
      Set(spec.name, object_.Text("name", limits::kNameBytes));
    }
    Set(spec.guaranteed, object_.Quantity("guaranteed", Bytes(0), most));
    Set(spec.limit, object_.Quantity("limit", Bytes(0), most));
    if (object_.Has("policy")) SetPolicyOf(spec);
    if (object_.Has("floors")) Set(spec.floors, Floors());
    if (object_.Has("weight")) Set(spec.weight, object_.Integer("weight", 1, kMaxWeight));
    if (object_.Has("priority")) Set(spec.priority, object_.Integer("priority", 0, kMaxPriority));
    if (object_.Has("borrowing")) {
      SetChoice(spec.borrowing, "borrowing", {Borrowing::kOn, Borrowing::kOff});
    }
    if (object_.Has("grace")) Set(spec.grace, ReadGrace(spec.grace));
    if (object_.Has("over_deadline")) {
      SetChoice(spec.over_deadline, "over_deadline", {OverDeadline::kHold, OverDeadline::kPreempt});
    }
    if (!status_.ok()) return status_;
    if (absl::Status status = CheckTenantSpec(spec); !status.ok()) {
      return object_.Refusal(std::string(status.message()));
    }
    return spec;
  }

  // The object as a policy by its own name, which `auto` is not.
  absl::StatusOr<PolicySpec> ReadPolicy() {
    const auto name = object_.Text("name", limits::kNameBytes);
    if (!name.ok()) return name.status();
    PolicyValues parameters;
    for (const std::string& key : object_.Keys()) {
      if (key != "name") Set(parameters[key], object_.Scalar(key));
    }
    if (!status_.ok()) return status_;
    auto policy = MakePolicySpec(*name, parameters);
    if (!policy.ok()) return object_.Refusal(std::string(policy.status().message()));
    return policy;
  }

  // The object as `auto`.
  absl::StatusOr<PolicyLadder> ReadLadder() {
    (void)object_.Take("name");
    PolicyValue floor;
    Set(floor, object_.Scalar("min_recovery"));
    if (!status_.ok()) return status_;
    const auto recovery = ParseRecoveryFloor(floor);
    if (!recovery.ok()) return object_.Refusal(std::string(recovery.status().message()));
    PolicyLadder ladder{.min_recovery = *recovery, .rungs = DefaultRungs()};
    if (object_.Has("allowed")) Set(ladder.rungs, Rungs());
    if (status_.ok()) status_ = object_.Finish();
    if (!status_.ok()) return status_;
    if (absl::Status status = CheckLadder(ladder); !status.ok()) {
      return object_.Refusal(std::string(status.message()));
    }
    return ladder;
  }

 private:
  template <typename T>
  void Set(T& field, absl::StatusOr<T> value) {
    if (!status_.ok()) return;
    status_ = value.status();
    if (value.ok()) field = *std::move(value);
  }

  template <typename Choice>
  void SetChoice(Choice& field, const std::string& name, std::initializer_list<Choice> allowed) {
    std::string text;
    Set(text, object_.Text(name, limits::kNameBytes));
    if (!status_.ok()) return;
    std::string names;
    for (const Choice choice : allowed) {
      names += (names.empty() ? "" : " or ") + ToString(choice);
      if (ToString(choice) != text) continue;
      field = choice;
      return;
    }
    status_ = object_.Refusal(name + " \"" + text + "\" is not allowed; it must be " + names);
  }

  void SetPolicyOf(TenantSpec& spec) {
    auto policy = object_.Child("policy", "a policy such as {name: scissorhands, budget: 256}");
    if (status_.ok()) status_ = policy.status();
    if (!status_.ok()) return;
    std::string name;
    Set(name, policy->Text("name", limits::kNameBytes));
    if (name == kAutoPolicy) {
      PolicyLadder ladder;
      Set(ladder, TenantFields(*policy).ReadLadder());
      SetLadder(std::move(ladder), &spec);
    } else if (status_.ok()) {
      PolicySpec fixed = DefaultPolicySpec();
      Set(fixed, TenantFields(*policy).ReadPolicy());
      SetPolicy(std::move(fixed), &spec);
    }
  }

  absl::StatusOr<std::vector<PolicySpec>> Rungs() {
    const auto items = object_.TextsOrObjects(
        "allowed", limits::kConfigFileBytes,
        "a list of names and policies such as [full, {name: h2o, budget: 1024}]");
    if (!items.ok()) return items.status();
    std::vector<PolicySpec> rungs;
    for (const std::variant<std::string, Object>& item : *items) {
      if (const auto* const name = std::get_if<std::string>(&item)) {
        const auto rung = FindRung(*name);
        if (!rung.ok()) return object_.Refusal(std::string(rung.status().message()));
        rungs.push_back(*rung);
      } else {
        Object policy = std::get<Object>(item);
        const auto rung = TenantFields(policy).ReadPolicy();
        if (!rung.ok()) return rung.status();
        rungs.push_back(*rung);
      }
    }
    return rungs;
  }

  absl::StatusOr<std::map<std::string, Bytes>> Floors() {
    auto floors = object_.Child("floors", "bytes for each agent such as {gpu-0: 4 GiB}");
    if (!floors.ok()) return floors.status();
    std::map<std::string, Bytes> bytes;
    for (const std::string& agent : floors->Keys()) {
      Set(bytes[agent], floors->Quantity(agent, Bytes(0), Bytes(limits::kTenantBytes)));
    }
    if (!status_.ok()) return status_;
    return bytes;
  }

  absl::StatusOr<Grace> ReadGrace(Grace grace) {
    auto object = object_.Child("grace", "durations such as {cold: 2 s, running: 15 s}");
    if (!object.ok()) return object.status();
    if (object->Has("cold")) Set(grace.cold, object->Span("cold", Duration(0), kMaxGrace));
    if (object->Has("running")) Set(grace.running, object->Span("running", Duration(0), kMaxGrace));
    if (status_.ok()) status_ = object->Finish();
    if (!status_.ok()) return status_;
    return grace;
  }

  Object& object_;
  absl::Status status_;
};

}  // namespace kvpool

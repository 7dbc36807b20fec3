// Strict YAML: a tree of maps, lists and scalars that knows where each part was written.
//
// Stricter than the language, so that a file means what it seems to: a duplicate key, an anchor, an
// alias, a tag or a second document is an error. Every error reads "file:line: what; what is
// allowed". Values, any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/units.h"

namespace kvpool {

struct YamlEntry;

struct YamlNode {
  enum class Kind { kNull, kScalar, kList, kMap };

  Kind kind = Kind::kNull;
  std::string where;               // "agent.yaml:7"
  std::string scalar;              // of a scalar, without quotes
  std::vector<YamlNode> items;     // of a list
  std::vector<YamlEntry> entries;  // of a map, in the file's order

  // InvalidArgument: "agent.yaml:7: <message>".
  absl::Status Error(const std::string& message) const;

  // The value of a key of a map, or null.
  const YamlNode* Find(const std::string& key) const;
  // The same, an error when it is missing.
  absl::StatusOr<const YamlNode*> Require(const std::string& key) const;

  // That this is a map with none but these keys.
  absl::Status CheckKeys(const std::vector<std::string>& allowed) const;
  absl::Status CheckList() const;

  // A scalar as a value within inclusive bounds.
  absl::StatusOr<std::string> AsText(size_t longest) const;
  absl::StatusOr<int64_t> AsInteger(int64_t min, int64_t max) const;
  absl::StatusOr<Bytes> AsBytes(Bytes min, Bytes max) const;
  absl::StatusOr<Duration> AsDuration(Duration min, Duration max) const;
};

struct YamlEntry {
  std::string key;
  std::string where;  // of the key
  YamlNode value;
};

// The same calls for a map as JsonObject has for an object, so that one function reads both. The
// node must outlive this.
class YamlObject {
 public:
  // Fails when the node is no map; `expected` says in words what belongs there.
  static absl::StatusOr<YamlObject> From(const YamlNode& node, const std::string& expected);

  // Whether the key is there; it is allowed from now on.
  bool Has(const std::string& key) { return Take(key) != nullptr; }
  std::vector<std::string> Keys() const;

  absl::StatusOr<std::string> Text(const std::string& key, size_t longest);
  absl::StatusOr<int64_t> Integer(const std::string& key, int64_t min, int64_t max);
  absl::StatusOr<Bytes> Quantity(const std::string& key, Bytes min, Bytes max);
  absl::StatusOr<Duration> Span(const std::string& key, Duration min, Duration max);
  // Text: a file does not tell "1" from 1.
  absl::StatusOr<std::variant<int64_t, double, std::string>> Scalar(const std::string& key);
  absl::StatusOr<YamlObject> Child(const std::string& key, const std::string& expected);
  absl::StatusOr<std::vector<std::variant<std::string, YamlObject>>> TextsOrObjects(
      const std::string& key, size_t longest, const std::string& expected);
  const YamlNode* Take(const std::string& key);

  // That there is no key that nobody asked for.
  absl::Status Finish() const { return node_->CheckKeys(known_); }
  // An error about the whole map.
  absl::Status Refusal(const std::string& message) const { return node_->Error(message); }

 private:
  explicit YamlObject(const YamlNode& node) : node_(&node) {}
  absl::StatusOr<const YamlNode*> Require(const std::string& key);

  const YamlNode* node_;
  std::vector<std::string> known_;
};

// Parses one document; an empty one is an empty map. `file` is for messages. At most
// limits::kConfigFileBytes.
absl::StatusOr<YamlNode> ParseYaml(const std::string& text, const std::string& file);

// Reads and parses a file.
absl::StatusOr<YamlNode> ReadYamlFile(const std::string& path);

// "a, b, c", for messages.
std::string JoinNames(const std::vector<std::string>& names);

}  // namespace kvpool

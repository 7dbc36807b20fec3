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
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
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
};

struct YamlEntry {
  std::string key;
  std::string where;  // of the key
  YamlNode value;
};

// Parses one document; an empty one is an empty map. `file` is for messages. At most
// limits::kConfigFileBytes.
absl::StatusOr<YamlNode> ParseYaml(const std::string& text, const std::string& file);

// Reads and parses a file.
absl::StatusOr<YamlNode> ReadYamlFile(const std::string& path);

// "a, b, c", for messages.
std::string JoinNames(const std::vector<std::string>& names);

}  // namespace kvpool

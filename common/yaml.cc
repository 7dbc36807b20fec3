// The tree is built from yaml-cpp's events, not from its nodes: those drop duplicate keys silently.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/yaml.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <optional>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/quantity.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

constexpr size_t kDeepest = 16;

class TreeBuilder final : public YAML::EventHandler {
 public:
  explicit TreeBuilder(const std::string& file) : file_(file) {}

  YamlNode TakeRoot() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    CheckPlain(mark, "", anchor);
    Complete(Make(mark, YamlNode::Kind::kNull), mark);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    throw YAML::ParserException(mark, "aliases are not allowed; write the value out");
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    CheckPlain(mark, tag, anchor);
    YamlNode node = Make(mark, YamlNode::Kind::kScalar);
    node.scalar = value;
    Complete(std::move(node), mark);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    Open(mark, tag, anchor, YamlNode::Kind::kList);
  }
  void OnSequenceEnd() override { CloseInnermost(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    Open(mark, tag, anchor, YamlNode::Kind::kMap);
  }
  void OnMapEnd() override { CloseInnermost(); }

 private:
  struct Level {
    YamlNode node;
    YAML::Mark mark;
    std::optional<YamlNode> key;  // of a map: read, its value is next
  };

  std::string Where(const YAML::Mark& mark) const {
    return absl::StrCat(file_, ":", mark.line + 1);
  }

  YamlNode Make(const YAML::Mark& mark, YamlNode::Kind kind) const {
    return YamlNode{.kind = kind, .where = Where(mark)};
  }

  static void CheckPlain(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
    if (anchor != 0) throw YAML::ParserException(mark, "anchors are not allowed");
    // yaml-cpp says "?" for a plain node and "!" for a quoted scalar.
    if (!tag.empty() && tag != "?" && tag != "!") {
      throw YAML::ParserException(mark, "tags are not allowed");
    }
  }

  void Open(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
            YamlNode::Kind kind) {
    CheckPlain(mark, tag, anchor);
    if (levels_.size() >= kDeepest) throw YAML::ParserException(mark, "nested too deeply");
    levels_.push_back({.node = Make(mark, kind), .mark = mark});
  }

  void CloseInnermost() {
    Level level = std::move(levels_.back());
    levels_.pop_back();
    Complete(std::move(level.node), level.mark);
  }

  // A node is finished: it is the root, an item, a key or a value.
  void Complete(YamlNode node, const YAML::Mark& mark) {
    if (levels_.empty()) {
      root_ = std::move(node);
      return;
    }
    Level& level = levels_.back();
    if (level.node.kind == YamlNode::Kind::kList) {
      level.node.items.push_back(std::move(node));
    } else if (level.key.has_value()) {
      // yaml-cpp notices a missing value only at the next token.
      if (node.kind == YamlNode::Kind::kNull) node.where = level.key->where;
      level.node.entries.push_back(
          {std::move(level.key->scalar), std::move(level.key->where), std::move(node)});
      level.key.reset();
    } else {
      if (node.kind != YamlNode::Kind::kScalar) {
        throw YAML::ParserException(mark, "a key must be a word");
      }
      if (level.node.Find(node.scalar) != nullptr) {
        throw YAML::ParserException(mark, absl::StrCat("key \"", node.scalar, "\" is there twice"));
      }
      level.key = std::move(node);
    }
  }

  const std::string& file_;
  YamlNode root_{.kind = YamlNode::Kind::kMap};
  std::vector<Level> levels_;
};

}  // namespace

std::string JoinNames(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) absl::StrAppend(&text, text.empty() ? "" : ", ", name);
  return text;
}

absl::Status YamlNode::Error(const std::string& message) const {
  return absl::InvalidArgumentError(absl::StrCat(where, ": ", message));
}

const YamlNode* YamlNode::Find(const std::string& key) const {
  const auto found = std::find_if(entries.begin(), entries.end(),
                                  [&](const YamlEntry& entry) { return entry.key == key; });
  return found == entries.end() ? nullptr : &found->value;
}

absl::StatusOr<const YamlNode*> YamlNode::Require(const std::string& key) const {
  const YamlNode* const value = Find(key);
  if (value == nullptr) return Error(absl::StrCat("key \"", key, "\" is missing"));
  return value;
}

absl::Status YamlNode::CheckKeys(const std::vector<std::string>& allowed) const {
  if (kind != Kind::kMap) {
    return Error(absl::StrCat("expected keys and values; allowed keys are ", JoinNames(allowed)));
  }
  for (const YamlEntry& entry : entries) {
    if (std::find(allowed.begin(), allowed.end(), entry.key) == allowed.end()) {
      return absl::InvalidArgumentError(absl::StrCat(entry.where, ": unknown key \"", entry.key,
                                                     "\"; allowed are ", JoinNames(allowed)));
    }
  }
  return absl::OkStatus();
}

absl::Status YamlNode::CheckList() const {
  return kind == Kind::kList ? absl::OkStatus() : Error("expected a list");
}

absl::StatusOr<std::string> YamlNode::AsText(size_t longest) const {
  if (kind != Kind::kScalar) {
    return Error(kind == Kind::kNull ? "the value is missing" : "expected a single value");
  }
  if (scalar.size() > longest) {
    return Error(absl::StrCat("the value is ", scalar.size(), " bytes long; at most ", longest,
                              " are allowed"));
  }
  return scalar;
}

absl::StatusOr<int64_t> YamlNode::AsInteger(int64_t min, int64_t max) const {
  const auto text = AsText(limits::kConfigFileBytes);
  if (!text.ok()) return text.status();
  const auto value = ParseInteger(*text);
  if (!value.ok()) return Error(std::string(value.status().message()));
  if (*value < min || *value > max) {
    return Error(absl::StrCat(*value, " is outside ", min, "..", max));
  }
  return value;
}

absl::StatusOr<Bytes> YamlNode::AsBytes(Bytes min, Bytes max) const {
  const auto text = AsText(limits::kConfigFileBytes);
  if (!text.ok()) return text.status();
  const auto value = ParseBytes(*text);
  if (!value.ok()) return Error(std::string(value.status().message()));
  if (*value < min || *value > max) {
    return Error(absl::StrCat(*text, " is outside ", FormatBytes(min), "..", FormatBytes(max)));
  }
  return value;
}

absl::StatusOr<Duration> YamlNode::AsDuration(Duration min, Duration max) const {
  const auto text = AsText(limits::kConfigFileBytes);
  if (!text.ok()) return text.status();
  const auto value = ParseDuration(*text);
  if (!value.ok()) return Error(std::string(value.status().message()));
  if (*value < min || *value > max) {
    return Error(
        absl::StrCat(*text, " is outside ", FormatDuration(min), "..", FormatDuration(max)));
  }
  return value;
}

absl::StatusOr<YamlObject> YamlObject::From(const YamlNode& node, const std::string& expected) {
  if (node.kind != YamlNode::Kind::kMap) return node.Error("expected " + expected);
  return YamlObject(node);
}

std::vector<std::string> YamlObject::Keys() const {
  std::vector<std::string> keys;
  for (const YamlEntry& entry : node_->entries) keys.push_back(entry.key);
  return keys;
}

const YamlNode* YamlObject::Take(const std::string& key) {
  if (std::find(known_.begin(), known_.end(), key) == known_.end()) known_.push_back(key);
  return node_->Find(key);
}

absl::StatusOr<const YamlNode*> YamlObject::Require(const std::string& key) {
  Take(key);
  return node_->Require(key);
}

absl::StatusOr<std::string> YamlObject::Text(const std::string& key, size_t longest) {
  const auto value = Require(key);
  if (!value.ok()) return value.status();
  return (*value)->AsText(longest);
}

absl::StatusOr<int64_t> YamlObject::Integer(const std::string& key, int64_t min, int64_t max) {
  const auto value = Require(key);
  if (!value.ok()) return value.status();
  return (*value)->AsInteger(min, max);
}

absl::StatusOr<Bytes> YamlObject::Quantity(const std::string& key, Bytes min, Bytes max) {
  const auto value = Require(key);
  if (!value.ok()) return value.status();
  return (*value)->AsBytes(min, max);
}

absl::StatusOr<Duration> YamlObject::Span(const std::string& key, Duration min, Duration max) {
  const auto value = Require(key);
  if (!value.ok()) return value.status();
  return (*value)->AsDuration(min, max);
}

absl::StatusOr<std::variant<int64_t, double, std::string>> YamlObject::Scalar(
    const std::string& key) {
  const auto text = Text(key, limits::kConfigFileBytes);
  if (!text.ok()) return text.status();
  return *text;
}

absl::StatusOr<YamlObject> YamlObject::Child(const std::string& key, const std::string& expected) {
  const auto value = Require(key);
  if (!value.ok()) return value.status();
  return From(**value, expected);
}

absl::StatusOr<std::vector<std::variant<std::string, YamlObject>>> YamlObject::TextsOrObjects(
    const std::string& key, size_t longest, const std::string& expected) {
  const auto value = Require(key);
  if (!value.ok()) return value.status();
  if ((*value)->kind != YamlNode::Kind::kList) return (*value)->Error("expected " + expected);
  std::vector<std::variant<std::string, YamlObject>> items;
  for (const YamlNode& item : (*value)->items) {
    if (item.kind == YamlNode::Kind::kMap) {
      items.emplace_back(YamlObject(item));
      continue;
    }
    auto text = item.AsText(longest);
    if (!text.ok()) return text.status();
    items.emplace_back(*std::move(text));
  }
  return items;
}

absl::StatusOr<YamlNode> ParseYaml(const std::string& text, const std::string& file) {
  if (text.size() > limits::kConfigFileBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": the file is larger than ", limits::kConfigFileBytes, " bytes"));
  }
  try {
    std::istringstream stream(text);
    YAML::Parser parser(stream);
    TreeBuilder tree(file), second(file);
    parser.HandleNextDocument(tree);
    if (parser.HandleNextDocument(second)) {
      return absl::InvalidArgumentError(absl::StrCat(file, ": only one document is allowed"));
    }
    YamlNode root = tree.TakeRoot();
    if (root.kind == YamlNode::Kind::kNull) root.kind = YamlNode::Kind::kMap;
    if (root.where.empty()) root.where = absl::StrCat(file, ":1");
    return root;
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ":", error.mark.line + 1, ": ", error.msg));
  }
}

absl::StatusOr<YamlNode> ReadYamlFile(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  std::string text(limits::kConfigFileBytes + 1, '\0');
  stream.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!stream.is_open() || stream.bad()) {
    return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  }
  text.resize(static_cast<size_t>(stream.gcount()));
  return ParseYaml(text, path);
}

}  // namespace kvpool

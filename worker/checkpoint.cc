// One safetensors file or the shards of an index.
//
// SPDX-License-Identifier: Apache-2.0
#include "worker/checkpoint.h"

#include <boost/json.hpp>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace kvpool {
namespace {

constexpr uint64_t kMaxTextBytes = 64 << 20;
constexpr size_t kMaxShards = 1024;

// File names of all shards: plain names, so that an index cannot lead out of its directory.
absl::StatusOr<std::set<std::string>> ParseIndex(const std::string& path, const std::string& text) {
  boost::json::error_code error;
  const boost::json::value json = boost::json::parse(text, error);
  if (error) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is not JSON: ", error.message()));
  }
  const auto* object = json.if_object();
  const auto* map = object == nullptr ? nullptr : object->if_contains("weight_map");
  if (map == nullptr || !map->is_object() || map->get_object().empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, " has no weight_map"));
  }
  std::set<std::string> names;
  for (const auto& [tensor, file] : map->get_object()) {
    const std::string name = file.is_string() ? file.get_string().c_str() : "";
    if (name.empty() || std::filesystem::path(name).filename() != name || name == "..") {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": weight_map entry of ", std::string(tensor), " is not a plain file name"));
    }
    names.insert(name);
    if (names.size() > kMaxShards) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": more than ", kMaxShards, " shards"));
    }
  }
  return names;
}

}  // namespace

absl::StatusOr<std::string> ReadTextFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file || std::filesystem::is_directory(path)) {
    return absl::NotFoundError(absl::StrCat("cannot read ", path, ": ", std::strerror(errno)));
  }
  std::ostringstream text;
  text << file.rdbuf();
  if (text.view().size() > kMaxTextBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " is larger than ", kMaxTextBytes >> 20, " MiB"));
  }
  return std::move(text).str();
}

absl::StatusOr<Checkpoint> Checkpoint::Open(const std::string& directory) {
  std::set<std::string> names = {"model.safetensors"};
  const std::string index_path = directory + "/model.safetensors.index.json";
  if (!std::filesystem::exists(directory + "/model.safetensors") &&
      std::filesystem::exists(index_path)) {
    absl::StatusOr<std::string> text = ReadTextFile(index_path);
    if (!text.ok()) return text.status();
    absl::StatusOr<std::set<std::string>> shards = ParseIndex(index_path, *text);
    if (!shards.ok()) return shards.status();
    names = *std::move(shards);
  }
  std::vector<SafetensorsFile> files;
  files.reserve(names.size());
  for (const std::string& name : names) {
    absl::StatusOr<SafetensorsFile> file =
        SafetensorsFile::Open(absl::StrCat(directory, "/", name));
    if (!file.ok()) return file.status();
    files.push_back(*std::move(file));
  }
  return Checkpoint(directory, std::move(files));
}

absl::StatusOr<const TensorView*> Checkpoint::Find(const std::string& name,
                                                   const std::vector<uint64_t>& shape) const {
  for (const SafetensorsFile& file : files_) {
    const TensorView* tensor = file.Find(name);
    if (tensor == nullptr) continue;
    if (tensor->shape != shape) {
      return absl::InvalidArgumentError(absl::StrCat(
          directory_, ": tensor ", name, " has shape [", absl::StrJoin(tensor->shape, ", "),
          "], config.json wants [", absl::StrJoin(shape, ", "), "]"));
    }
    return tensor;
  }
  return absl::InvalidArgumentError(absl::StrCat(directory_, ": tensor ", name,
                                                 " is missing, config.json wants shape [",
                                                 absl::StrJoin(shape, ", "), "]"));
}

absl::Status Checkpoint::WantAbsent(const std::string& name, const std::string& why) const {
  for (const SafetensorsFile& file : files_) {
    if (file.Find(name) == nullptr) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(directory_, ": tensor ", name, " has no place: ", why));
  }
  return absl::OkStatus();
}

}  // namespace kvpool

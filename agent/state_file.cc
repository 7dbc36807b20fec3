// "kvpstat1", SHA-256 of the rest, a Cap'n Proto message.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/state_file.h"

#include <capnp/message.h>
#include <capnp/serialize.h>
#include <fcntl.h>
#include <kj/exception.h>
#include <kj/io.h>
#include <stdio.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "agent/manager_messages.h"
#include "common/quantity.h"
#include "common/secret.h"
#include "proto/limits.h"
#include "proto/manager.capnp.h"

namespace kvpool {
namespace {

constexpr std::string_view kMagic = "kvpstat1";
constexpr size_t kHeader = kMagic.size() + sizeof(Sha256Hash);

std::string_view View(const Sha256Hash& hash) {
  return {reinterpret_cast<const char*>(hash.data()), hash.size()};
}

absl::StatusOr<std::optional<KeptOrders>> FromMessage(rpc::AgentState::Reader state,
                                                      const StateOwner& owner) {
  const std::string agent(state.getAgent().begin(), state.getAgent().size());
  if (agent != owner.agent) {
    return absl::InvalidArgumentError(absl::StrCat("it is of agent \"", agent, "\", and this is \"",
                                                   owner.agent,
                                                   "\"; give each agent a state_file of its own"));
  }
  if (state.getSlabBytes() != static_cast<uint64_t>(owner.slab_bytes.value())) return std::nullopt;
  auto orders = CheckedOrders(state.getOrders());
  if (!orders.ok()) return orders.status();
  return KeptOrders{.epoch = orders->epoch, .tenants = std::move(orders->tenants)};
}

absl::Status Failure(const char* what, const std::string& path) {
  return absl::ErrnoToStatus(errno, absl::StrCat("cannot ", what, " ", path));
}

// All of it, to the disk.
absl::Status WriteDurably(const std::string& path, const std::string& content) {
  const kj::AutoCloseFd fd(open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (fd.get() < 0) return Failure("open", path);
  std::string_view rest = content;
  while (!rest.empty()) {
    const ssize_t written = write(fd.get(), rest.data(), rest.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return Failure("write", path);
    rest.remove_prefix(static_cast<size_t>(written));
  }
  return fsync(fd.get()) == 0 ? absl::OkStatus() : Failure("sync", path);
}

}  // namespace

std::string EncodeState(const StateOwner& owner, const KeptOrders& orders) {
  capnp::MallocMessageBuilder message;
  ToProto(orders, owner.agent, owner.slab_bytes, message.initRoot<rpc::AgentState>());
  const kj::Array<capnp::word> words = capnp::messageToFlatArray(message);
  const auto bytes = words.asBytes();
  const std::string_view body(reinterpret_cast<const char*>(bytes.begin()), bytes.size());
  return absl::StrCat(std::string(kMagic), std::string(View(Sha256(body))), std::string(body));
}

absl::StatusOr<std::optional<KeptOrders>> DecodeState(const std::string& content,
                                                      const StateOwner& owner) {
  const std::string_view all = content;
  if (all.size() < kHeader || all.substr(0, 7) != kMagic.substr(0, 7)) {
    return absl::InvalidArgumentError("it is no state file of an agent");
  }
  if (all.substr(0, kMagic.size()) != kMagic) {
    return absl::InvalidArgumentError("it was written by a newer version of kvpool-agent");
  }
  const std::string_view body = all.substr(kHeader);
  if (View(Sha256(body)) != all.substr(kMagic.size(), sizeof(Sha256Hash)) ||
      body.size() % sizeof(capnp::word) != 0) {
    return absl::InvalidArgumentError("it is damaged");
  }
  auto words = kj::heapArray<capnp::word>(body.size() / sizeof(capnp::word));
  std::memcpy(words.begin(), body.data(), body.size());
  absl::StatusOr<std::optional<KeptOrders>> decoded = absl::InvalidArgumentError("it is damaged");
  (void)kj::runCatchingExceptions([&] {
    capnp::FlatArrayMessageReader reader(words);
    decoded = FromMessage(reader.getRoot<rpc::AgentState>(), owner);
  });
  return decoded;
}

absl::StatusOr<std::optional<KeptOrders>> ReadState(const std::string& path,
                                                    const StateOwner& owner) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error == std::errc::no_such_file_or_directory) return std::nullopt;
  if (!error && size > limits::kStateFileBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("state_file ", path, " cannot be used: it is larger than ",
                     FormatBytes(Bytes(limits::kStateFileBytes)), ", and so no state file"));
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) return Failure("read state_file", path);
  const std::string content{std::istreambuf_iterator<char>(file), {}};
  auto decoded = DecodeState(content, owner);
  if (decoded.ok()) return decoded;
  return absl::InvalidArgumentError(absl::StrCat(
      "state_file ", path, " cannot be used: ", std::string(decoded.status().message()),
      "; remove it to start with no lease until a manager gives one"));
}

absl::Status WriteState(const std::string& path, const std::string& content) {
  const std::string beside = path + ".new";
  if (absl::Status written = WriteDurably(beside, content); !written.ok()) return written;
  if (rename(beside.c_str(), path.c_str()) != 0) return Failure("replace", path);
  // The new name, too, must be on the disk before anybody relies on it.
  const std::string folder = std::filesystem::absolute(path).parent_path();
  const kj::AutoCloseFd fd(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.get() < 0 || fsync(fd.get()) != 0) return Failure("sync", folder);
  return absl::OkStatus();
}

}  // namespace kvpool

// Connections between processes as TCP and unix sockets make them: what one end sends arrives
// once, in order and late, or not at all because the connection has ended. Each end learns of the
// end at a time of its own, so a request may have been executed although its answer never comes.
// Nothing overtakes inside a connection; between connections everything may.
//
// A partition holds messages of one direction back until it heals; TCP would send them again.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "tests/sim/world.h"

namespace kvpool::sim {

enum class ConnectionId : uint64_t { kNone = 0 };

class Network {
 public:
  struct Delay {
    Duration least, most;
  };
  // How long a peer takes to notice that a machine is gone: TCP keep-alive as common/rpc_link.cc
  // sets it, 5 s of silence and three probes 5 s apart.
  static constexpr Duration kKeepAlive = std::chrono::seconds(20);

  explicit Network(World& world) : world_(world) {}

  // Both processes are alive. `on_closed` of an end runs when it learns that the other end or the
  // connection is gone; not when it closes itself.
  ConnectionId Connect(Process* a, std::function<void()> a_closed, Process* b,
                       std::function<void()> b_closed, Delay delay);
  // Runs `deliver` at the other end unless the connection ends before. Does nothing for a
  // connection that is closed at `from`.
  void Send(ConnectionId id, const Process* from, std::function<void()> deliver);
  bool IsOpen(ConnectionId id, const Process* end) const;
  void Close(ConnectionId id, const Process* end);

  // The process is dead. Its kernel closes what it had open; a lost machine closes nothing.
  enum class Loss : uint8_t { kProcess, kMachine };
  void Died(const Process* process, Loss loss);
  // Ends a connection in the middle; false when there is none of the kind.
  bool BreakOne(const std::function<bool(const Process*, const Process*)>& of_kind);

  // Holds messages from `from` to `to` back until `time`.
  void Block(const Process* from, const Process* to, TimePoint time);
  void Heal() { blocked_.clear(); }
  bool Blocked(const Process* from, const Process* to) const;

  // Connections that some end still has open.
  size_t open() const { return connections_.size(); }

 private:
  struct End {
    Process* process = nullptr;
    uint64_t life = 0;
    bool open = true;
    TimePoint last_arrival;
    std::function<void()> on_closed;
  };
  struct Connection {
    std::array<End, 2> ends;
    Delay delay;
  };

  static size_t IndexOf(const Connection& connection, const Process* process) {
    return connection.ends[0].process == process ? 0 : 1;
  }
  TimePoint BlockedUntil(const Process* from, const Process* to) const;
  void CloseEnd(ConnectionId id, size_t index);
  void LearnsClosed(ConnectionId id, size_t index);

  World& world_;
  std::map<ConnectionId, Connection> connections_;
  uint64_t last_id_ = 0;
  std::map<std::pair<int, int>, TimePoint> blocked_;  // from, to
};

}  // namespace kvpool::sim

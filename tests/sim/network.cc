// Ends, delays and partitions.
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/network.h"

#include <algorithm>

namespace kvpool::sim {

ConnectionId Network::Connect(Process* a, std::function<void()> a_closed, Process* b,
                              std::function<void()> b_closed, Delay delay) {
  const ConnectionId id{++last_id_};
  connections_[id] = {
      .ends = {End{.process = a, .life = a->life(), .on_closed = std::move(a_closed)},
               End{.process = b, .life = b->life(), .on_closed = std::move(b_closed)}},
      .delay = delay};
  return id;
}

bool Network::IsOpen(ConnectionId id, const Process* end) const {
  const auto found = connections_.find(id);
  return found != connections_.end() && found->second.ends[IndexOf(found->second, end)].open;
}

TimePoint Network::BlockedUntil(const Process* from, const Process* to) const {
  const auto found = blocked_.find({from->id(), to->id()});
  return found == blocked_.end() ? TimePoint() : found->second;
}

bool Network::Blocked(const Process* from, const Process* to) const {
  return world_.now() < BlockedUntil(from, to);
}

void Network::Block(const Process* from, const Process* to, TimePoint time) {
  TimePoint& until = blocked_[{from->id(), to->id()}];
  until = std::max(until, time);
}

void Network::Send(ConnectionId id, const Process* from, std::function<void()> deliver) {
  const auto found = connections_.find(id);
  if (found == connections_.end()) return;
  Connection& connection = found->second;
  const size_t sender = IndexOf(connection, from), receiver = 1 - sender;
  if (!connection.ends[sender].open) return;
  End& to = connection.ends[receiver];
  const TimePoint sent = std::max(world_.now(), BlockedUntil(from, to.process));
  const TimePoint arrives = std::max(
      to.last_arrival, sent + world_.DrawBetween(connection.delay.least, connection.delay.most));
  to.last_arrival = arrives;
  world_.At(arrives, to.process, [this, id, receiver, deliver = std::move(deliver)] {
    const auto now = connections_.find(id);
    if (now != connections_.end() && now->second.ends[receiver].open) deliver();
  });
}

void Network::CloseEnd(ConnectionId id, size_t index) {
  const auto found = connections_.find(id);
  if (found == connections_.end()) return;
  found->second.ends[index].open = false;
  if (!found->second.ends[1 - index].open) connections_.erase(found);
}

void Network::LearnsClosed(ConnectionId id, size_t index) {
  const auto found = connections_.find(id);
  if (found == connections_.end() || !found->second.ends[index].open) return;
  const std::function<void()> on_closed = std::move(found->second.ends[index].on_closed);
  CloseEnd(id, index);
  if (on_closed) on_closed();
}

void Network::Close(ConnectionId id, const Process* end) {
  const auto found = connections_.find(id);
  if (found == connections_.end()) return;
  const size_t index = IndexOf(found->second, end);
  if (!found->second.ends[index].open) return;
  // After what was sent before.
  Send(id, end, [this, id, index] { LearnsClosed(id, 1 - index); });
  CloseEnd(id, index);
}

void Network::Died(const Process* process, Loss loss) {
  std::vector<std::pair<ConnectionId, size_t>> ends;
  for (const auto& [id, connection] : connections_) {
    for (size_t index : {0, 1}) {
      const End& end = connection.ends[index];
      if (end.process == process && end.open) ends.emplace_back(id, index);
    }
  }
  for (const auto& [id, index] : ends) {
    Process* peer = connections_.at(id).ends[1 - index].process;
    if (loss == Loss::kProcess) {
      Send(id, process, [this, id = id, index = index] { LearnsClosed(id, 1 - index); });
    } else {
      world_.At(world_.now() + kKeepAlive, peer,
                [this, id = id, index = index] { LearnsClosed(id, 1 - index); });
    }
    CloseEnd(id, index);
  }
}

bool Network::BreakOne(const std::function<bool(const Process*, const Process*)>& of_kind) {
  std::vector<ConnectionId> candidates;
  for (const auto& [id, connection] : connections_) {
    if (of_kind(connection.ends[0].process, connection.ends[1].process)) candidates.push_back(id);
  }
  if (candidates.empty()) return false;
  const ConnectionId id = candidates[world_.Draw(candidates.size())];
  for (size_t index : {0, 1}) {
    const Duration later = world_.DrawBetween(Duration(0), std::chrono::milliseconds(300));
    world_.At(world_.now() + later, connections_.at(id).ends[index].process,
              [this, id, index] { LearnsClosed(id, index); });
  }
  return true;
}

}  // namespace kvpool::sim

// The queue of events, and the history with its hash (FNV-1a).
//
// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/world.h"

#include <algorithm>
#include <iostream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace kvpool::sim {
namespace {

constexpr uint64_t kPrime = 1099511628211u;

void Mix(uint64_t value, uint64_t* hash) {
  for (int byte = 0; byte < 8; ++byte) {
    *hash = (*hash ^ ((value >> (8 * byte)) & 0xff)) * kPrime;
  }
}

std::string Fill(const char* text, std::initializer_list<int64_t> numbers) {
  std::string filled;
  const int64_t* next = numbers.begin();
  for (const char* c = text; *c != '\0'; ++c) {
    if (*c != '%' || next == numbers.end()) {
      filled += *c;
    } else {
      absl::StrAppend(&filled, *next++);
    }
  }
  return filled;
}

}  // namespace

bool Process::stopped() const { return world_.now() < stopped_until_; }

TimePoint Process::Now() const { return world_.now() + clock_ahead_; }

void Process::Start() {
  alive_ = true;
  ++life_;
  stopped_until_ = TimePoint();
}

void Process::After(Duration delay, std::function<void()> event) {
  world_.At(world_.now() + delay, this, std::move(event));
}

Process* World::NewProcess(std::string name) {
  return &processes_.emplace_back(*this, static_cast<int>(processes_.size()), std::move(name));
}

void World::Push(Event event) {
  heap_.push_back(std::move(event));
  std::push_heap(heap_.begin(), heap_.end(), Later());
}

void World::At(TimePoint time, Process* process, std::function<void()> event) {
  Push({.time = std::max(time, now_),
        .order = next_order_++,
        .process = process,
        .life = process == nullptr ? 0 : process->life(),
        .run = std::move(event)});
}

bool World::Step(TimePoint until) {
  while (!heap_.empty() && heap_.front().time <= until) {
    std::pop_heap(heap_.begin(), heap_.end(), Later());
    Event event = std::move(heap_.back());
    heap_.pop_back();
    now_ = event.time;
    if (const Process* process = event.process; process != nullptr) {
      if (!process->alive() || process->life() != event.life) continue;
      if (process->stopped()) {
        event.time = process->stopped_until();
        event.order = next_order_++;
        Push(std::move(event));
        continue;
      }
    }
    ++events_;
    event.run();
    return true;
  }
  now_ = std::max(now_, until);
  return false;
}

void World::Write(const char* kind, const char* text, std::initializer_list<int64_t> numbers) {
  Mix(static_cast<uint64_t>(now_.time_since_epoch().count()), &hash_);
  for (const char* part : {kind, text}) {
    for (const char* c = part; *c != '\0'; ++c) {
      hash_ = (hash_ ^ static_cast<unsigned char>(*c)) * kPrime;
    }
  }
  for (int64_t number : numbers) Mix(static_cast<uint64_t>(number), &hash_);
  if (recording_ == Recording::kOff) return;
  const double seconds = std::chrono::duration<double>(elapsed()).count();
  std::string line = absl::StrFormat("%11.6f  %-10s %s", seconds, kind, Fill(text, numbers));
  if (recording_ == Recording::kPrint) std::cout << line << "\n";
  last_events_.push_back(std::move(line));
  if (last_events_.size() > kLastEvents) last_events_.pop_front();
}

void World::Note(const char* kind, const char* text, std::initializer_list<int64_t> numbers) {
  ++event_counts_[kind];
  Write(kind, text, numbers);
}

void World::NoteFault(const char* kind, const char* text, std::initializer_list<int64_t> numbers) {
  ++fault_counts_[kind];
  Write(kind, text, numbers);
}

void World::Violate(const std::string& invariant, const std::string& what) {
  if (!violation_.has_value()) violation_ = Violation{invariant, what};
}

// The same literal may have several addresses.
std::map<std::string, uint64_t> World::Named(const Counts& counts) {
  std::map<std::string, uint64_t> named;
  for (const auto& [name, count] : counts) named[name] += count;
  return named;
}

}  // namespace kvpool::sim

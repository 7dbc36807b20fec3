// Everything that a real machine has by accident, made on purpose: time, chance, and the order in
// which things happen. One seed, one history. It knows nothing of managers and agents.
//
// Time is CLOCK_BOOTTIME as each process reads it: it goes on while a process is stopped, and it
// may jump forward. Events run one after the other; each belongs to a process (or to nobody), is
// lost when that process dies and waits while it is stopped. One thread a world; worlds share
// nothing.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <initializer_list>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "common/clock.h"

namespace kvpool::sim {

class World;

// One process of the simulated cluster: it can be killed, started again, and stopped for a while.
class Process {
 public:
  Process(World& world, int id, std::string name)
      : world_(world), id_(id), name_(std::move(name)) {}

  int id() const { return id_; }
  const std::string& name() const { return name_; }
  bool alive() const { return alive_; }
  // Counts its starts: something that began in another life is nothing to this one.
  uint64_t life() const { return life_; }
  bool stopped() const;
  TimePoint stopped_until() const { return stopped_until_; }
  // What its clock says.
  TimePoint Now() const;

  void Start();
  void Kill() { alive_ = false; }
  // SIGSTOP until then, or a machine that sleeps.
  void StopUntil(TimePoint time) { stopped_until_ = std::max(stopped_until_, time); }
  void Resume() { stopped_until_ = TimePoint(); }
  void JumpClock(Duration ahead) { clock_ahead_ += ahead; }

  // Runs `event` in this life of the process.
  void After(Duration delay, std::function<void()> event);

 private:
  World& world_;
  const int id_;
  const std::string name_;
  bool alive_ = false;
  uint64_t life_ = 0;
  TimePoint stopped_until_;
  Duration clock_ahead_{0};
};

// An invariant that did not hold.
struct Violation {
  std::string invariant;  // "I4"
  std::string what;
};

class World {
 public:
  enum class Recording : uint8_t { kOff, kLastEvents, kPrint };

  World(uint64_t seed, Recording recording) : random_(seed), recording_(recording) {}
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  Process* NewProcess(std::string name);

  TimePoint now() const { return now_; }
  Duration elapsed() const { return now_ - kStart; }

  // Chance. `n` > 0.
  uint64_t Draw(uint64_t n) { return random_() % n; }
  bool Chance(uint32_t percent) { return Draw(100) < percent; }
  Duration DrawBetween(Duration least, Duration most) {
    return least + Duration(Draw(static_cast<uint64_t>((most - least).count()) + 1));
  }

  // Of events at one time the one that was asked for first runs first.
  void At(TimePoint time, Process* process, std::function<void()> event);
  // Runs the next event that is not later than `until`; false when there is none.
  bool Step(TimePoint until);
  // How many events wait.
  size_t waiting() const { return heap_.size(); }
  uint64_t events() const { return events_; }

  // Writes history: `kind` is what is counted, each % of `text` stands for one of `numbers`. Both
  // are literals.
  void Note(const char* kind, const char* text, std::initializer_list<int64_t> numbers = {});
  // The same for a fault that was injected; counted apart.
  void NoteFault(const char* kind, const char* text, std::initializer_list<int64_t> numbers = {});
  // The first one counts.
  void Violate(const std::string& invariant, const std::string& what);

  const std::optional<Violation>& violation() const { return violation_; }
  uint64_t hash() const { return hash_; }
  const std::deque<std::string>& last_events() const { return last_events_; }
  std::map<std::string, uint64_t> EventCounts() const { return Named(event_counts_); }
  std::map<std::string, uint64_t> FaultCounts() const { return Named(fault_counts_); }

 private:
  using Counts = std::map<const char*, uint64_t>;

  struct Event {
    TimePoint time;
    uint64_t order = 0;
    Process* process = nullptr;
    uint64_t life = 0;
    std::function<void()> run;
  };
  struct Later {
    bool operator()(const Event& a, const Event& b) const {
      return a.time != b.time ? a.time > b.time : a.order > b.order;
    }
  };

  static constexpr TimePoint kStart = TimePoint(std::chrono::hours(1));
  static constexpr size_t kLastEvents = 60;

  static std::map<std::string, uint64_t> Named(const Counts& counts);
  void Push(Event event);
  void Write(const char* kind, const char* text, std::initializer_list<int64_t> numbers);

  std::mt19937_64 random_;
  const Recording recording_;
  TimePoint now_ = kStart;
  std::vector<Event> heap_;
  uint64_t next_order_ = 0;
  uint64_t events_ = 0;
  uint64_t hash_ = 14695981039346656037u;
  std::deque<Process> processes_;
  std::deque<std::string> last_events_;
  Counts event_counts_, fault_counts_;
  std::optional<Violation> violation_;
};

}  // namespace kvpool::sim

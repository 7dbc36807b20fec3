// Registry plumbing, name rules, and the process_* basics read from /proc at each scrape.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>

#include "common/log.h"
#include "common/version.h"

namespace kvpool {
namespace {

enum class Kind { kCounter, kOther };

void CheckName(const std::string& name, Kind kind) {
  constexpr std::string_view kPrefix = "kvpool_", kSuffix = "_total";
  const bool total = name.size() > kSuffix.size() &&
                     name.compare(name.size() - kSuffix.size(), kSuffix.size(), kSuffix) == 0;
  const bool plain =
      name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_") == std::string::npos;
  if (name.rfind(kPrefix, 0) == 0 && plain && total == (kind == Kind::kCounter)) return;
  Logger("metrics").Error("a metric's name breaks the rules", {{"name", name}});
  std::abort();
}

double SecondsOf(const timeval& time) {
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
}

// Pages that /proc/self/statm names second: resident.
double ResidentPages() {
  std::ifstream statm("/proc/self/statm");
  double size = 0, resident = 0;
  statm >> size >> resident;
  return resident;
}

double CountEntries(const char* folder) {
  std::error_code error;
  double count = 0;
  for (std::filesystem::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    ++count;
  }
  return count;
}

}  // namespace

void Counter::Add(double amount) { series_->Increment(amount); }
void Counter::RaiseTo(double total) { series_->Increment(std::max(0.0, total - series_->Value())); }
double Counter::Value() const { return series_->Value(); }
void Gauge::Set(double value) { series_->Set(value); }
void Gauge::Add(double amount) { series_->Increment(amount); }
double Gauge::Value() const { return series_->Value(); }
void Histogram::Observe(double value) { series_->Observe(value); }

template <typename Handle>
typename Handle::Series& MetricFamily<Handle>::Find(const Labels& labels) {
  if constexpr (std::is_same_v<Handle, Histogram>) {
    return family_->Add(labels, buckets_);
  } else {
    return family_->Add(labels);
  }
}

template <typename Handle>
Handle MetricFamily<Handle>::With(const Labels& labels) {
  return Handle(Find(labels));
}

template <typename Handle>
void MetricFamily<Handle>::Remove(const Labels& labels) {
  family_->Remove(&Find(labels));
}

template class MetricFamily<Counter>;
template class MetricFamily<Gauge>;
template class MetricFamily<Histogram>;

// The names that Prometheus' own client libraries use; hence without our prefix.
struct Metrics::Process {
  explicit Process(prometheus::Registry& registry)
      : resident(AddGauge(registry, "process_resident_memory_bytes", "Resident memory.")),
        descriptors(AddGauge(registry, "process_open_fds", "Open file descriptors.")),
        descriptor_limit(AddGauge(registry, "process_max_fds", "Limit of open descriptors.")),
        threads(AddGauge(registry, "process_threads", "Threads.")),
        cpu(prometheus::BuildCounter()
                .Name("process_cpu_seconds_total")
                .Help("User and system time.")
                .Register(registry)
                .Add({})) {
    AddGauge(registry, "process_start_time_seconds", "When the process started, Unix time.")
        .Set(static_cast<double>(std::time(nullptr)));
  }

  static Gauge AddGauge(prometheus::Registry& registry, const char* name, const char* help) {
    return Gauge(prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add({}));
  }

  void Refresh() {
    rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    cpu.RaiseTo(SecondsOf(usage.ru_utime) + SecondsOf(usage.ru_stime));
    rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    descriptor_limit.Set(static_cast<double>(limit.rlim_cur));
    resident.Set(ResidentPages() * static_cast<double>(sysconf(_SC_PAGESIZE)));
    descriptors.Set(CountEntries("/proc/self/fd"));
    threads.Set(CountEntries("/proc/self/task"));
  }

  Gauge resident, descriptors, descriptor_limit, threads;
  Counter cpu;
};

Metrics::Metrics(const std::string& program)
    : registry_(std::make_unique<prometheus::Registry>()),
      process_(std::make_unique<Process>(*registry_)) {
  GaugeFamily("kvpool_build_info", "Always 1; the labels say what runs.")
      .With({{"program", program}, {"version", Version()}})
      .Set(1);
}

Metrics::~Metrics() = default;

MetricFamily<Counter> Metrics::CounterFamily(const std::string& name, const std::string& help) {
  CheckName(name, Kind::kCounter);
  return MetricFamily<Counter>(
      prometheus::BuildCounter().Name(name).Help(help).Register(*registry_));
}

MetricFamily<Gauge> Metrics::GaugeFamily(const std::string& name, const std::string& help) {
  CheckName(name, Kind::kOther);
  return MetricFamily<Gauge>(prometheus::BuildGauge().Name(name).Help(help).Register(*registry_));
}

MetricFamily<Histogram> Metrics::HistogramFamily(const std::string& name, const std::string& help,
                                                 std::vector<double> buckets) {
  CheckName(name, Kind::kOther);
  return MetricFamily<Histogram>(
      prometheus::BuildHistogram().Name(name).Help(help).Register(*registry_), std::move(buckets));
}

std::string Metrics::Serialize() {
  process_->Refresh();
  return prometheus::TextSerializer().Serializer::Serialize(registry_->Collect());
}

}  // namespace kvpool

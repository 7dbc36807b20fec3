// Counters, gauges and histograms for /metrics: thin handles on prometheus-cpp's registry.
//
// Rules, checked when a family is made (breaking one is a bug and ends the program): names match
// kvpool_[a-z0-9_]+ and use base units (bytes, seconds); counters, and only they, end in _total.
// Labels are bounded: tenant, reason, policy, device; never a session or a worker.
//
// Every method may be called from any thread. Handles are copied freely and live as long as the
// Metrics, or until their series is removed.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

namespace prometheus {
class Counter;
class Gauge;
class Histogram;
class Registry;
template <typename T>
class Family;
}  // namespace prometheus

namespace kvpool {

using Labels = std::map<std::string, std::string>;

// Only goes up.
class Counter {
 public:
  using Series = prometheus::Counter;
  explicit Counter(Series& series) : series_(&series) {}
  void Add(double amount = 1);
  // For a total that is counted elsewhere: adds what is missing, and nothing when it fell.
  void RaiseTo(double total);
  double Value() const;

 private:
  Series* series_;
};

class Gauge {
 public:
  using Series = prometheus::Gauge;
  explicit Gauge(Series& series) : series_(&series) {}
  void Set(double value);
  void Add(double amount);
  double Value() const;

 private:
  Series* series_;
};

class Histogram {
 public:
  using Series = prometheus::Histogram;
  explicit Histogram(Series& series) : series_(&series) {}
  void Observe(double value);

 private:
  Series* series_;
};

// All series of one name.
template <typename Handle>
class MetricFamily {
 public:
  using Series = typename Handle::Series;
  explicit MetricFamily(prometheus::Family<Series>& family, std::vector<double> buckets = {})
      : family_(&family), buckets_(std::move(buckets)) {}

  // The series with these labels, made if it is not there.
  Handle With(const Labels& labels = {});
  // Drops the series, for instance of a tenant that is gone. Its handles are dead then.
  void Remove(const Labels& labels);

 private:
  Series& Find(const Labels& labels);

  prometheus::Family<Series>* family_;
  std::vector<double> buckets_;  // of histograms
};

class Metrics {
 public:
  // Registers kvpool_build_info{program, version} and the process_* basics.
  explicit Metrics(const std::string& program);
  ~Metrics();

  MetricFamily<Counter> CounterFamily(const std::string& name, const std::string& help);
  MetricFamily<Gauge> GaugeFamily(const std::string& name, const std::string& help);
  // `buckets` are upper bounds, ascending.
  MetricFamily<Histogram> HistogramFamily(const std::string& name, const std::string& help,
                                          std::vector<double> buckets);

  // Everything in Prometheus' text format, version 0.0.4.
  std::string Serialize();

 private:
  struct Process;

  std::unique_ptr<prometheus::Registry> registry_;
  std::unique_ptr<Process> process_;
};

// The content type of what Serialize returns.
inline constexpr char kMetricsContentType[] = "text/plain; version=0.0.4; charset=utf-8";

}  // namespace kvpool

// Structured logs on stderr: a message and key-value fields, as text for people or as JSON lines.
//
// A thin layer on spdlog; the only global is the logger "kvpool" in spdlog's registry. Without
// InitLogging, as in a library, lines go to stderr as text; the host's own loggers stay as they
// are. Text from outside (names, peers' errors) goes into fields, where it is escaped. Any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>

namespace spdlog {
class logger;
}

namespace kvpool {

enum class LogLevel { kDebug, kInfo, kWarn, kError };
enum class LogFormat { kText, kJson };

struct LogOptions {
  LogLevel level = LogLevel::kInfo;
  LogFormat format = LogFormat::kText;
};

// From the words of a configuration: debug, info, warn or error; text or json. Anything else is the
// default.
LogOptions LogOptionsFrom(const std::string& level, const std::string& format);

// Sets level and format of every Logger made from now on. Call once, early in main.
void InitLogging(LogOptions options);

// Renders one line as InitLogging's sink would, newline included; for tests. `payload` is a message
// as Logger hands it to spdlog.
std::string RenderLogLine(LogFormat format, std::string_view timestamp, std::string_view level,
                          std::string_view component, std::string_view payload);

// One key and its value. Keys are constants; `ts`, `level`, `msg` and `component` are taken.
struct LogField {
  LogField(const char* key, std::string_view text);
  LogField(const char* key, const char* text) : LogField(key, std::string_view(text)) {}
  LogField(const char* key, double number);
  template <std::integral T>
  LogField(const char* key, T number) : key(key), value(std::to_string(number)), quoted(false) {}

  const char* key;
  std::string value;
  bool quoted;  // a string in JSON; numbers are not
};

// Logs on behalf of one part of a program. Cheap to copy.
class Logger {
 public:
  using Fields = std::initializer_list<LogField>;

  explicit Logger(const std::string& component);

  void Debug(std::string_view message, Fields fields = {}) const;
  void Info(std::string_view message, Fields fields = {}) const;
  void Warn(std::string_view message, Fields fields = {}) const;
  void Error(std::string_view message, Fields fields = {}) const;

 private:
  std::shared_ptr<spdlog::logger> logger_;
};

}  // namespace kvpool

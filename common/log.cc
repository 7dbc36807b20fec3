// Fields travel through spdlog inside the payload, split by a control character that no value can
// contain, and become text or JSON in the sink's formatter.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/log.h"

#include <spdlog/formatter.h>
#include <spdlog/logger.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <ctime>
#include <vector>

namespace kvpool {
namespace {

constexpr char kRegistered[] = "kvpool";  // in spdlog's registry

constexpr char kSeparator = '\x1f';
constexpr char kQuotedTag = 's', kNumberTag = 'n';

// Appends `text` with everything escaped that JSON or a terminal could take for more than text.
void AppendEscaped(std::string_view text, std::string& out) {
  for (const char c : text) {
    const unsigned char byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (byte < 0x20 || byte == 0x7f) {
      std::array<char, 8> code;
      std::snprintf(code.data(), code.size(), "\\u%04x", byte);
      out += code.data();
    } else {
      out += c;
    }
  }
}

std::string Quoted(std::string_view text) {
  std::string out = "\"";
  AppendEscaped(text, out);
  return out += '"';
}

bool NeedsQuotes(std::string_view text) {
  return text.empty() || text.find_first_of(" =\"\\") != std::string_view::npos ||
         std::any_of(text.begin(), text.end(), [](unsigned char c) { return c < 0x20; });
}

std::vector<std::string_view> SplitPayload(std::string_view payload) {
  std::vector<std::string_view> parts;
  for (;;) {
    const size_t end = payload.find(kSeparator);
    parts.push_back(payload.substr(0, end));
    if (end == std::string_view::npos) return parts;
    payload.remove_prefix(end + 1);
  }
}

std::string Timestamp(spdlog::log_clock::time_point time) {
  const auto since_epoch = time.time_since_epoch();
  const auto millis =
      std::chrono::duration_cast<std::chrono::milliseconds>(since_epoch).count() % 1000;
  const time_t seconds = spdlog::log_clock::to_time_t(time);
  tm utc;
  gmtime_r(&seconds, &utc);
  std::array<char, 40> text;
  const size_t length = strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%S", &utc);
  std::snprintf(text.data() + length, text.size() - length, ".%03dZ", static_cast<int>(millis));
  return text.data();
}

class Formatter final : public spdlog::formatter {
 public:
  explicit Formatter(LogFormat format) : format_(format) {}

  void format(const spdlog::details::log_msg& msg, spdlog::memory_buf_t& out) override {
    const auto level = spdlog::level::to_string_view(msg.level);
    const std::string line = RenderLogLine(
        format_, Timestamp(msg.time), {level.data(), level.size()},
        {msg.logger_name.data(), msg.logger_name.size()}, {msg.payload.data(), msg.payload.size()});
    out.append(line.data(), line.data() + line.size());
  }

  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<Formatter>(format_);
  }

 private:
  LogFormat format_;
};

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarn:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

std::shared_ptr<spdlog::logger> MakeLogger(LogOptions options) {
  auto sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
  sink->set_formatter(std::make_unique<Formatter>(options.format));
  auto logger = std::make_shared<spdlog::logger>(kRegistered, std::move(sink));
  logger->set_level(ToSpdlog(options.level));
  logger->flush_on(spdlog::level::debug);
  return logger;
}

void Emit(spdlog::logger& logger, spdlog::level::level_enum level, std::string_view message,
          Logger::Fields fields) {
  if (!logger.should_log(level)) return;
  std::string payload(message);
  for (const LogField& field : fields) {
    payload += kSeparator;
    payload += field.key;
    payload += kSeparator;
    payload += field.quoted ? kQuotedTag : kNumberTag;
    payload += field.value;
  }
  logger.log(level, spdlog::string_view_t(payload.data(), payload.size()));
}

}  // namespace

LogField::LogField(const char* key, std::string_view text) : key(key), value(text), quoted(true) {
  std::replace(value.begin(), value.end(), kSeparator, '?');
}

LogField::LogField(const char* key, double number) : key(key), quoted(false) {
  std::array<char, 32> text;
  std::snprintf(text.data(), text.size(), "%.6g", number);
  value = text.data();
  quoted = value.find_first_of("ni") != std::string::npos;  // JSON has no nan and no inf
}

std::string RenderLogLine(LogFormat format, std::string_view timestamp, std::string_view level,
                          std::string_view component, std::string_view payload) {
  const std::vector<std::string_view> parts = SplitPayload(payload);
  const bool json = format == LogFormat::kJson;
  std::string line;
  if (json) {
    line.append("{\"ts\":\"").append(timestamp).append("\",\"level\":\"").append(level);
    line.append("\",\"component\":").append(Quoted(component));
    line.append(",\"msg\":").append(Quoted(parts[0]));
  } else {
    line.append(timestamp).append(" ").append(level).append(" ").append(component).append(": ");
    AppendEscaped(parts[0], line);
  }
  for (size_t i = 1; i + 1 < parts.size(); i += 2) {
    const bool number = !parts[i + 1].empty() && parts[i + 1][0] == kNumberTag;
    const std::string_view value = parts[i + 1].substr(parts[i + 1].empty() ? 0 : 1);
    const bool quote = json ? !number : !number && NeedsQuotes(value);
    line.append(json ? ",\"" : " ").append(parts[i]).append(json ? "\":" : "=");
    line.append(quote ? Quoted(value) : std::string(value));
  }
  return line.append(json ? "}\n" : "\n");
}

LogOptions LogOptionsFrom(const std::string& level, const std::string& format) {
  LogOptions options;
  if (level == "debug") options.level = LogLevel::kDebug;
  if (level == "warn") options.level = LogLevel::kWarn;
  if (level == "error") options.level = LogLevel::kError;
  if (format == "json") options.format = LogFormat::kJson;
  return options;
}

void InitLogging(LogOptions options) {
  spdlog::drop(kRegistered);
  spdlog::register_logger(MakeLogger(options));
}

Logger::Logger(const std::string& component) {
  const std::shared_ptr<spdlog::logger> base = spdlog::get(kRegistered);
  logger_ = (base != nullptr ? base : MakeLogger({}))->clone(component);
}

void Logger::Debug(std::string_view message, Fields fields) const {
  Emit(*logger_, spdlog::level::debug, message, fields);
}
void Logger::Info(std::string_view message, Fields fields) const {
  Emit(*logger_, spdlog::level::info, message, fields);
}
void Logger::Warn(std::string_view message, Fields fields) const {
  Emit(*logger_, spdlog::level::warn, message, fields);
}
void Logger::Error(std::string_view message, Fields fields) const {
  Emit(*logger_, spdlog::level::err, message, fields);
}

}  // namespace kvpool

// Every setting is a pair of functions, from and to text; the sources know nothing of types.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/config.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/quantity.h"
#include "common/version.h"
#include "common/yaml.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

std::string FlagName(std::string name) {
  std::replace(name.begin(), name.end(), '_', '-');
  return "--" + name;
}

std::string EnvironmentName(const std::string& name) {
  std::string upper = "KVPOOL_";
  for (const char c : name) upper += static_cast<char>(std::toupper(c));
  return upper;
}

// A setting's `set` for a type with a parser and bounds.
template <typename T, typename Parse>
auto SetWithin(T* value, T min, T max, std::string allowed, Parse parse) {
  return [=](const std::string& text) -> absl::Status {
    const absl::StatusOr<T> parsed = parse(text);
    if (!parsed.ok()) return parsed.status();
    if (*parsed < min || *parsed > max) {
      return absl::InvalidArgumentError(absl::StrCat(text, " is outside ", allowed));
    }
    *value = *parsed;
    return absl::OkStatus();
  };
}

// Quoted so that any text survives as one YAML scalar.
std::string YamlQuoted(const std::string& text) {
  std::string quoted = "'";
  for (const char c : text) quoted.append(c == '\'' ? 2 : 1, c);
  return quoted += '\'';
}

}  // namespace

Settings::Settings(std::string program, std::string about)
    : program_(std::move(program)), about_(std::move(about)) {}

void Settings::Declare(Setting setting) {
  setting.default_value = setting.get();
  settings_.push_back(std::move(setting));
}

void Settings::Add(const std::string& name, const std::string& description, Bytes* value, Bytes min,
                   Bytes max) {
  const std::string allowed = absl::StrCat(FormatBytes(min), "..", FormatBytes(max));
  Declare({.name = name,
           .description = description,
           .allowed = allowed,
           .set = SetWithin(value, min, max, allowed, ParseBytes),
           .get = [value] { return FormatBytes(*value); }});
}

void Settings::Add(const std::string& name, const std::string& description, Duration* value,
                   Duration min, Duration max) {
  const std::string allowed = absl::StrCat(FormatDuration(min), "..", FormatDuration(max));
  Declare({.name = name,
           .description = description,
           .allowed = allowed,
           .set = SetWithin(value, min, max, allowed, ParseDuration),
           .get = [value] { return FormatDuration(*value); }});
}

void Settings::Add(const std::string& name, const std::string& description, int64_t* value,
                   int64_t min, int64_t max) {
  const std::string allowed = absl::StrCat(min, "..", max);
  Declare({.name = name,
           .description = description,
           .allowed = allowed,
           .set = SetWithin(value, min, max, allowed, ParseInteger),
           .get = [value] { return std::to_string(*value); }});
}

void Settings::Add(const std::string& name, const std::string& description, bool* value) {
  Declare({.name = name,
           .description = description,
           .allowed = "true, false",
           .set =
               [value](const std::string& text) {
                 *value = text == "true";
                 return *value || text == "false"
                            ? absl::OkStatus()
                            : absl::InvalidArgumentError(absl::StrCat(
                                  "\"", text, "\" is not allowed; allowed are true, false"));
               },
           .get = [value] { return std::string(*value ? "true" : "false"); }});
}

void Settings::Add(const std::string& name, const std::string& description, std::string* value,
                   std::function<absl::Status(const std::string&)> check) {
  Declare({.name = name,
           .description = description,
           .allowed = "text",
           .set =
               [value, check = std::move(check)](const std::string& text) {
                 if (check != nullptr) {
                   if (absl::Status status = check(text); !status.ok()) return status;
                 }
                 *value = text;
                 return absl::OkStatus();
               },
           .get = [value] { return *value; }});
}

void Settings::AddChoice(const std::string& name, const std::string& description,
                         std::string* value, const std::vector<std::string>& choices) {
  Add(name, description, value, [choices](const std::string& text) {
    if (std::find(choices.begin(), choices.end(), text) != choices.end()) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\" is not allowed; allowed are ", JoinNames(choices)));
  });
  settings_.back().allowed = JoinNames(choices);
}

absl::Status Settings::Set(Setting& setting, const std::string& text, const std::string& source,
                           const std::string& where) {
  if (absl::Status status = setting.set(text); !status.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": ", setting.name, ": ", std::string(status.message())));
  }
  setting.source = source;
  return absl::OkStatus();
}

absl::Status Settings::LoadFile(const std::string& path) {
  const auto root = ReadYamlFile(path);
  if (!root.ok()) return root.status();
  std::vector<std::string> names;
  for (const Setting& setting : settings_) names.push_back(setting.name);
  if (absl::Status status = root->CheckKeys(names); !status.ok()) return status;
  for (Setting& setting : settings_) {
    const YamlNode* const node = root->Find(setting.name);
    if (node == nullptr) continue;
    const auto text = node->AsText(limits::kConfigFileBytes);
    if (!text.ok()) return text.status();
    if (absl::Status status = Set(setting, *text, node->where, node->where); !status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Settings::Startup> Settings::Load(
    const std::vector<std::string>& args, const std::map<std::string, std::string>& environment) {
  CLI::App app(about_, program_);
  std::string file;
  bool print_config = false, print_settings = false, print_version = false;
  app.add_option("--config", file, "YAML file with settings (KVPOOL_CONFIG)");
  app.add_flag("--print-config", print_config, "print the settings in force and exit");
  app.add_flag("--print-settings", print_settings, "print a table of all settings and exit");
  app.add_flag("--version", print_version, "print the version and exit");
  std::vector<std::string> flags(settings_.size());
  for (size_t i = 0; i < settings_.size(); ++i) {
    const Setting& setting = settings_[i];
    app.add_option(FlagName(setting.name), flags[i],
                   absl::StrCat(setting.description, " [", setting.default_value, "] (",
                                setting.allowed, ")"));
  }
  try {
    app.parse(std::vector<std::string>(args.rbegin(), args.rend()));
  } catch (const CLI::CallForHelp&) {
    return Startup{app.help()};
  } catch (const CLI::ParseError& error) {
    return absl::InvalidArgumentError(absl::StrCat(error.what(), "; see ", program_, " --help"));
  }
  if (print_version) return Startup{absl::StrCat(program_, " ", Version(), "\n")};
  if (print_settings) return Startup{ToMarkdown()};

  const auto from_environment = environment.find("KVPOOL_CONFIG");
  if (file.empty() && from_environment != environment.end()) file = from_environment->second;
  if (!file.empty()) {
    if (absl::Status status = LoadFile(file); !status.ok()) return status;
  }
  for (size_t i = 0; i < settings_.size(); ++i) {
    const std::string name = EnvironmentName(settings_[i].name);
    if (const auto found = environment.find(name); found != environment.end()) {
      absl::Status status = Set(settings_[i], found->second, name, "environment " + name);
      if (!status.ok()) return status;
    }
    const std::string flag = FlagName(settings_[i].name);
    if (app.count(flag) > 0) {
      absl::Status status = Set(settings_[i], flags[i], flag, flag);
      if (!status.ok()) return status;
    }
  }
  return Startup{print_config ? ToYaml() : ""};
}

std::string Settings::ToYaml() const {
  std::string text;
  for (const Setting& setting : settings_) {
    absl::StrAppend(&text, "# ", setting.description, " (", setting.allowed, "; from ",
                    setting.source, ")\n", setting.name, ": ", YamlQuoted(setting.get()), "\n");
  }
  return text;
}

std::string Settings::ToMarkdown() const {
  std::string text = "| setting | default | allowed | what |\n|---|---|---|---|\n";
  for (const Setting& setting : settings_) {
    absl::StrAppend(&text, "| `", setting.name, "` | ", setting.default_value, " | ",
                    setting.allowed, " | ", setting.description, " |\n");
  }
  return text;
}

std::map<std::string, std::string> ProcessEnvironment() {
  std::map<std::string, std::string> variables;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const size_t equals = text.find('=');
    if (equals != std::string::npos) variables[text.substr(0, equals)] = text.substr(equals + 1);
  }
  return variables;
}

}  // namespace kvpool

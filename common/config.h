// The settings of a program, each declared once: name, description, default, bounds. Reading,
// checking, --help, --print-config and the documentation all come from that declaration.
//
// A value comes from the first of: flag (--slab-bytes), environment (KVPOOL_SLAB_BYTES), file
// (slab_bytes: in --config), default. Everything that is set is checked, also where a later source
// overrides it. Used at start-up on one thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/units.h"

namespace kvpool {

class Settings {
 public:
  // `program` and `about` head the help text.
  Settings(std::string program, std::string about);

  // Declares a setting. `value` holds its default now and its value after Load; it must outlive
  // this. Names are snake_case; bounds are inclusive.
  void Add(const std::string& name, const std::string& description, Bytes* value, Bytes min,
           Bytes max);
  void Add(const std::string& name, const std::string& description, Duration* value, Duration min,
           Duration max);
  void Add(const std::string& name, const std::string& description, int64_t* value, int64_t min,
           int64_t max);
  // "true" or "false".
  void Add(const std::string& name, const std::string& description, bool* value);
  // Any text; `check`, where given, accepts a value or says what is allowed.
  void Add(const std::string& name, const std::string& description, std::string* value,
           std::function<absl::Status(const std::string&)> check = nullptr);
  // One of a few words.
  void AddChoice(const std::string& name, const std::string& description, std::string* value,
                 const std::vector<std::string>& choices);

  // What to do after Load: print `output` and exit 0 when it is not empty, else run.
  struct Startup {
    std::string output;
  };

  // Reads every source. `args` without the program's name. Besides the settings' own flags there
  // are --config FILE (or KVPOOL_CONFIG), --print-config, --print-settings, --version and --help.
  absl::StatusOr<Startup> Load(const std::vector<std::string>& args,
                               const std::map<std::string, std::string>& environment);

  // Every setting with its value and where it came from, as YAML that --config reads back.
  std::string ToYaml() const;
  // A Markdown table of every setting: name, default, allowed values, description.
  std::string ToMarkdown() const;

 private:
  struct Setting {
    std::string name;
    std::string description;
    std::string allowed;        // "1 MiB..1 GiB"
    std::string default_value;  // as text
    std::string source = "default";
    std::function<absl::Status(const std::string&)> set;
    std::function<std::string()> get;
  };

  void Declare(Setting setting);
  absl::Status Set(Setting& setting, const std::string& text, const std::string& source,
                   const std::string& where);
  absl::Status LoadFile(const std::string& path);

  std::string program_;
  std::string about_;
  std::vector<Setting> settings_;
};

// The program's environment, for Settings::Load.
std::map<std::string, std::string> ProcessEnvironment();

}  // namespace kvpool

// Lines into prompts.
//
// SPDX-License-Identifier: Apache-2.0
#include "worker/prompts.h"

#include <boost/json.hpp>
#include <cmath>
#include <sstream>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/json.h"

namespace kvpool {
namespace {

absl::StatusOr<std::string> Unescape(const std::string& line) {
  std::string text;
  for (size_t i = 0; i < line.size(); ++i) {
    if (line[i] != '\\') {
      text += line[i];
      continue;
    }
    const char escaped = ++i < line.size() ? line[i] : '\0';
    if (escaped != 'n' && escaped != 't' && escaped != '\\') {
      return absl::InvalidArgumentError("a backslash must be followed by n, t or a backslash");
    }
    text += escaped == 'n' ? '\n' : escaped == 't' ? '\t' : '\\';
  }
  return text;
}

// Sets one key of a prompt; false when the key or its value is not allowed.
bool SetKey(const std::string& key, const boost::json::value& value, Prompt& prompt) {
  if (key == "prompt" && value.is_string()) {
    prompt.text.assign(value.get_string().begin(), value.get_string().end());
  } else if (key == "tenant" && value.is_string()) {
    prompt.tenant.assign(value.get_string().begin(), value.get_string().end());
  } else if (key == "max_tokens" && value.is_int64() && value.get_int64() >= 1 &&
             value.get_int64() <= kMaxNewTokens) {
    prompt.max_tokens = static_cast<uint32_t>(value.get_int64());
  } else if (key == "temperature" && value.is_number() && value.to_number<double>() >= 0 &&
             value.to_number<double>() <= 100) {
    prompt.temperature = value.to_number<float>();
  } else if (key == "seed" && value.is_int64() && value.get_int64() >= 0) {
    prompt.seed = static_cast<uint64_t>(value.get_int64());
  } else {
    return false;
  }
  return true;
}

absl::StatusOr<Prompt> ParseObject(const std::string& line, const Prompt& defaults) {
  const absl::StatusOr<boost::json::value> json = ParseJson(line);
  if (!json.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot be taken: ", std::string(json.status().message())));
  }
  Prompt prompt = defaults;
  prompt.text.clear();
  for (const auto& [key, value] : json->get_object()) {
    if (!SetKey(std::string(key), value, prompt)) {
      return absl::InvalidArgumentError(
          absl::StrCat("key \"", std::string(key), "\" with value ", boost::json::serialize(value),
                       " is not allowed; known are prompt and tenant (text), max_tokens (1..",
                       kMaxNewTokens, "), temperature (0..100) and seed (0..)"));
    }
  }
  if (prompt.text.empty()) return absl::InvalidArgumentError("has no prompt");
  return prompt;
}

absl::StatusOr<Prompt> ParseLine(const std::string& line, const Prompt& defaults) {
  if (line.front() == '{') return ParseObject(line, defaults);
  absl::StatusOr<std::string> text = Unescape(line);
  if (!text.ok()) return text.status();
  Prompt prompt = defaults;
  prompt.text = *std::move(text);
  return prompt;
}

}  // namespace

absl::StatusOr<std::vector<Prompt>> ParsePrompts(const std::string& text, const Prompt& defaults) {
  std::vector<Prompt> prompts;
  std::istringstream lines(text);
  size_t number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.empty()) continue;
    absl::StatusOr<Prompt> prompt = ParseLine(line, defaults);
    if (!prompt.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("line ", number, " ", prompt.status().message()));
    }
    if (prompts.size() == kMaxPrompts) {
      return absl::InvalidArgumentError(absl::StrCat("more than ", kMaxPrompts, " prompts"));
    }
    prompts.push_back(*std::move(prompt));
  }
  if (prompts.empty()) return absl::InvalidArgumentError("no prompt in the file");
  return prompts;
}

}  // namespace kvpool
